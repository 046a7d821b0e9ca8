"""Look up the embedding of each token, and add that of its position.

    token_ids  [num_tokens] int32, 0 <= id < vocab_size
    positions  [num_tokens] int32
    weight     [vocab_size or num_positions, width]
    out        [num_tokens, width], same dtype

What is computed stands in `kernels.embed` and `kernels.embed_positions`. Rows outside the table are
never read: the nearest row stands in for them, so that a bad id spoils its own sequence and nothing
else.

Memory bound: 2 * num_tokens * width * itemsize bytes; 3 times num_tokens * width for positions.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.rows import tile_rows


@triton.jit
def _embed_kernel(
    index_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_rows: tl.tensor,
    last: tl.tensor,  # row of the table
    offset: tl.tensor,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,  # to what `out` holds
) -> None:
    """One program copies, or adds, ROWS rows of the table."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    live = row < num_rows
    mask = live[:, None] & (cols < WIDTH)[None, :]
    index = tl.load(index_ptr + row, mask=live, other=0).to(tl.int64) + offset
    index = tl.minimum(tl.maximum(index, 0), last)
    y = tl.load(weight_ptr + index[:, None] * WIDTH + cols[None, :], mask=mask, other=0.0)
    out = out_ptr + row.to(tl.int64)[:, None] * WIDTH + cols[None, :]
    if ADD:
        before = tl.load(out, mask=mask, other=0.0).to(tl.float32)
        y = (before + y.to(tl.float32)).to(out_ptr.dtype.element_ty)
    tl.store(out, y, mask=mask)


def embed(token_ids: Tensor, weight: Tensor, out: Tensor) -> None:
    """Write `out`; see the module docstring for shapes."""
    _launch(token_ids, weight, out, offset=0, add=False)


def embed_positions(positions: Tensor, weight: Tensor, out: Tensor, offset: int) -> None:
    """Add to `out` in place; see the module docstring for shapes."""
    _launch(positions, weight, out, offset, add=True)


def _launch(index: Tensor, weight: Tensor, out: Tensor, offset: int, add: bool) -> None:
    num_rows, width = out.shape
    assert index.shape == (num_rows,)
    assert weight.shape[1] == width
    assert all(t.is_contiguous() for t in (index, weight, out))
    if num_rows == 0:
        return
    tiles = tile_rows(num_rows, width)
    _embed_kernel[(tiles.num_programs,)](
        index,
        weight,
        out,
        num_rows,
        len(weight) - 1,
        offset,
        WIDTH=width,
        ROWS=tiles.rows,
        BLOCK=tiles.width,
        ADD=add,
        num_warps=tiles.num_warps,
    )
