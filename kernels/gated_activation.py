"""The gate of a gated MLP, behind one fused projection.

    x    [num_tokens, 2 * width] = [gate | up]
    out  [num_tokens, width] = activation(gate) * up, same dtype

The activation is computed in float32 and rounded before the product (as model code does).
"""

from torch import Tensor

from kernels.activation import activate
from kernels.program import Activation


def gated_activation_reference(x: Tensor, kind: Activation) -> Tensor:
    """See the module docstring."""
    gate, up = x.chunk(2, dim=-1)
    return activate(gate, kind) * up
