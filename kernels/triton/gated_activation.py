"""The gate of a gated MLP, behind one fused projection.

    x    [num_rows, 2 * width] = [gate | up]
    out  [num_rows, width] = activation(gate) * up, same dtype

What is computed stands in `kernels.gated_activation`. Memory bound: 3 * num_rows * width * itemsize
bytes.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.program import Activation
from kernels.triton.activation import activate

_ELEMENTS = 1024  # of one program


@triton.jit
def _gated_activation_kernel(
    x_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_elements: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
) -> None:
    """One program computes BLOCK neighbouring elements of `out`, over the ends of rows."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = element < num_elements
    gate_ptr = x_ptr + element // WIDTH * (2 * WIDTH) + element % WIDTH
    gate = tl.load(gate_ptr, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + WIDTH, mask=mask, other=0.0).to(tl.float32)
    dtype = out_ptr.dtype.element_ty
    gate = activate(gate, KIND).to(dtype).to(tl.float32)
    tl.store(out_ptr + element, (gate * up).to(dtype), mask=mask)


def gated_activation(x: Tensor, kind: Activation, out: Tensor) -> None:
    """Write `out`; see the module docstring for shapes."""
    num_rows, width = out.shape
    assert x.shape == (num_rows, 2 * width)
    assert x.is_contiguous()
    assert out.is_contiguous()
    if out.numel() == 0:
        return
    _gated_activation_kernel[(triton.cdiv(out.numel(), _ELEMENTS),)](
        x, out, out.numel(), WIDTH=width, BLOCK=_ELEMENTS, KIND=kind
    )
