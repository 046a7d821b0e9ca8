"""The functions of `kernels.activation` inside other kernels, on float32 tiles."""

import triton
import triton.language as tl


@triton.jit
def activate(x: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    """Apply "relu", "silu", "gelu", "gelu_tanh" or "none" to a float32 tile."""
    if KIND == "relu":
        x = tl.maximum(x, 0.0)
    elif KIND == "silu":
        x = x / (1 + tl.exp(-x))
    elif KIND == "gelu":
        x = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))  # 1 / sqrt(2)
    elif KIND == "gelu_tanh":
        # x * (1 + tanh(u)) / 2 = x * sigmoid(2 u), which has no cancellation for negative u.
        inner = 1.5957691216057308 * (x + 0.044715 * x * x * x)  # 2 * sqrt(2 / pi)
        x = x / (1 + tl.exp(-inner))
    return x
