"""A matrix of weights times each row, with what commonly follows it.

    x         [num_rows, in_width]
    weight    [out_width, in_width], same dtype
    bias      [out_width]
    residual  [num_rows, out_width], may be out
    out       [num_rows, out_width] = activation(x · weightᵀ + bias) + residual, same dtype

What is computed stands in `kernels.linear`. The product is cuBLAS's, through torch, which also adds
a bias or a residual in its own epilogue, in float32 before the only rounding. What is left (an
activation, or both at once) is one kernel more, over the product in place.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.program import Activation
from kernels.triton.activation import activate

_ELEMENTS = 1024  # of one program


@triton.jit
def _finish_kernel(
    product_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_elements: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
) -> None:
    """One program finishes BLOCK neighbouring elements, over the ends of rows."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = element < num_elements
    dtype = out_ptr.dtype.element_ty
    y = tl.load(product_ptr + element, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + element % WIDTH, mask=mask, other=0.0).to(tl.float32)
    y = activate(y, KIND)
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + element, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + element, y.to(dtype), mask=mask)


def linear(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    bias: Tensor | None = None,
    activation: Activation | None = None,
    residual: Tensor | None = None,
    product: Tensor | None = None,
) -> None:
    """Write `out`; see the module docstring for shapes.

    Args:
        product: room for `x · weightᵀ`, needed if `out` is also the residual and there is a bias
            or an activation.
    """
    if activation is None and bias is None and residual is not None:
        torch.addmm(residual, x, weight.t(), out=out)
    elif activation is None and residual is None and bias is not None:
        torch.addmm(bias, x, weight.t(), out=out)
    elif activation is None and residual is None:
        torch.mm(x, weight.t(), out=out)
    else:
        product = out if product is None else product
        assert residual is None or product is not residual
        torch.mm(x, weight.t(), out=product)
        _finish(product, bias, activation, residual, out)


def needs_product(has_bias: bool, activation: Activation | None, in_place: bool) -> bool:
    """Whether `linear` has to be given room for the product; `in_place`: out is the residual."""
    return in_place and (has_bias or activation is not None)


def _finish(
    product: Tensor,
    bias: Tensor | None,
    activation: Activation | None,
    residual: Tensor | None,
    out: Tensor,
) -> None:
    assert product.shape == out.shape
    assert all(t is None or t.is_contiguous() for t in (product, bias, residual, out))
    if out.numel() == 0:
        return
    _finish_kernel[(triton.cdiv(out.numel(), _ELEMENTS),)](
        product,
        product if bias is None else bias,
        product if residual is None else residual,
        out,
        out.numel(),
        WIDTH=out.shape[1],
        BLOCK=_ELEMENTS,
        KIND=activation or "none",
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
    )
