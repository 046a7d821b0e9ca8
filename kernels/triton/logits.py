"""Score every word of the vocabulary for each sampled row.

    x        [num_rows, width]
    weight   [vocab_size, width]
    product  [num_rows, vocab_size], x's dtype
    out      [num_rows, vocab_size] float32 = product, or soft_cap * tanh(product / soft_cap)

What is computed stands in `kernels.logits`; the product is cuBLAS's, through torch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 4096  # of one program


@triton.jit
def _widen_kernel(
    product_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_elements: tl.tensor,
    soft_cap: tl.tensor,
    BLOCK: tl.constexpr,
    HAS_CAP: tl.constexpr,
) -> None:
    """One program widens BLOCK neighbouring scores."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = element < num_elements
    y = tl.load(product_ptr + element, mask=mask, other=0.0).to(tl.float32)
    if HAS_CAP:
        # tanh(u) = 1 - 2 / (exp(2 u) + 1), right at both ends, where exp is 0 or infinite.
        y = soft_cap * (1 - 2 / (tl.exp(2 * y / soft_cap) + 1))
    tl.store(out_ptr + element, y, mask=mask)


def logits(
    x: Tensor, weight: Tensor, product: Tensor, out: Tensor, soft_cap: float | None = None
) -> None:
    """Write `product` and `out`; see the module docstring for shapes. They may be one tensor."""
    assert product.shape == out.shape == (len(x), len(weight))
    assert out.is_contiguous()
    assert product.is_contiguous()
    torch.mm(x, weight.t(), out=product)
    is_done = soft_cap is None and product is out
    if out.numel() == 0 or is_done:
        return
    _widen_kernel[(triton.cdiv(out.numel(), _ELEMENTS),)](
        product,
        out,
        out.numel(),
        soft_cap or 0.0,
        BLOCK=_ELEMENTS,
        HAS_CAP=soft_cap is not None,
        num_warps=8,
    )
