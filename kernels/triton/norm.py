"""Normalise each row, after adding it to the residual stream if there is one.

    x, residual   [num_rows, width]
    weight, bias  [width]
    out           [num_rows, width], may be x

What is computed stands in `kernels.norm`. A row is read once and kept in registers.

Memory bound: 2 * num_rows * width * itemsize bytes, 4 times that with a residual.
"""

from typing import Literal

import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.rows import tile_rows


@triton.jit
def _norm_kernel(
    x_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_rows: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_LAYER: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
) -> None:
    """One program normalises ROWS rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    in_row = cols < WIDTH
    mask = (row < num_rows)[:, None] & in_row[None, :]
    at = row.to(tl.int64)[:, None] * WIDTH + cols[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        dtype = residual_ptr.dtype.element_ty
        x += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
        total = x.to(dtype)
        tl.store(residual_ptr + at, total, mask=mask)
        x = total.to(tl.float32)
    if IS_LAYER:
        mean = tl.sum(x, 1) / WIDTH
        x = tl.where(mask, x - mean[:, None], 0.0)
    mean_square = tl.sum(x * x, 1) / WIDTH
    y = x * tl.rsqrt(mean_square + eps)[:, None]
    y *= tl.load(weight_ptr + cols, mask=in_row, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + cols, mask=in_row, other=0.0).to(tl.float32)[None, :]
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=mask)


def norm(
    kind: Literal["rms", "layer"],
    x: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> None:
    """Write `out`, and `residual` in place; see the module docstring for shapes."""
    num_rows, width = x.shape
    assert out.shape == x.shape
    assert weight.shape == (width,)
    assert all(t is None or t.is_contiguous() for t in (x, weight, out, bias, residual))
    if num_rows == 0:
        return
    tiles = tile_rows(num_rows, width)
    _norm_kernel[(tiles.num_programs,)](
        x,
        x if residual is None else residual,
        weight,
        weight if bias is None else bias,
        out,
        num_rows,
        eps,
        WIDTH=width,
        ROWS=tiles.rows,
        BLOCK=tiles.width,
        IS_LAYER=kind == "layer",
        HAS_RESIDUAL=residual is not None,
        HAS_BIAS=bias is not None,
        num_warps=tiles.num_warps,
    )
