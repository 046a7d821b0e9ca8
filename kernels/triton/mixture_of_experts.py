"""A gated MLP that each row takes from a few of many experts: route, group, multiply, combine.

    x         [num_rows, width]
    router    [num_experts, width], same dtype
    gate_up   [num_experts, 2 * inner, width]: gate above up
    down      [num_experts, width, inner]
    residual  [num_rows, width], may be out
    out       [num_rows, width], same dtype

What is computed stands in `kernels.mixture_of_experts`. A choice is one (row, expert); row r makes
choices r * top_k to r * top_k + top_k - 1.

 1. route    scores by cuBLAS; per row the top_k experts and their shares
 2. group    choices in order of their experts, and how many each expert has
 3. multiply a grouped matrix product: a program finds its expert by counting tiles, gathers the
             rows of its choices, and computes gate and up at once; then the same for down
 4. combine  the sum over a row's choices in float32, and the residual

Nothing waits for the host, so the whole op can be captured in a graph: the grid has room for the
worst spread of choices over experts, and programs without work end at once.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.program import Activation
from kernels.triton.activation import activate
from kernels.triton.interpreter import must_upcast
from kernels.triton.rows import tile_rows

_GROUP_BLOCK = 1024  # choices that one program of `group` looks at at once


@dataclass(frozen=True, slots=True)
class ExpertTiles:
    """Sizes of the grouped product's tiles."""

    rows: int
    cols: int
    depth: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Workspace:
    """Intermediate results, for `num_choices` or more choices."""

    scores: Tensor  # [num_choices, num_experts], activations' dtype; only [num_rows] are used
    shares: Tensor  # [num_choices] float32
    experts: Tensor  # [num_choices] int32
    order: Tensor  # [num_choices] int32, choices by expert
    counts: Tensor  # [num_experts] int32, choices of each expert
    gated: Tensor  # [num_choices, inner], in the order of `order`
    chosen: Tensor  # [num_choices, width], by choice


def make_workspace(
    num_choices: int, num_experts: int, width: int, inner: int, like: Tensor
) -> Workspace:
    """Uninitialised, on the device of `like`; activations in its dtype."""
    return Workspace(
        scores=like.new_empty(num_choices, num_experts),
        shares=like.new_empty(num_choices, dtype=torch.float32),
        experts=like.new_empty(num_choices, dtype=torch.int32),
        order=like.new_empty(num_choices, dtype=torch.int32),
        counts=like.new_empty(num_experts, dtype=torch.int32),
        gated=like.new_empty(num_choices, inner),
        chosen=like.new_empty(num_choices, width),
    )


def expert_tiles(num_choices: int, num_experts: int, itemsize: int) -> ExpertTiles:
    """Low tiles while experts have few rows each, so that little is multiplied for nothing."""
    depth = 128 // itemsize
    if num_choices <= 16 * num_experts:
        return ExpertTiles(rows=16, cols=64, depth=depth, num_warps=4, num_stages=3)
    return ExpertTiles(rows=64, cols=64, depth=depth, num_warps=4, num_stages=3)


@triton.jit
def _route_kernel(
    scores_ptr: tl.tensor,
    shares_ptr: tl.tensor,
    experts_ptr: tl.tensor,
    num_rows: tl.tensor,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program routes ROWS rows.

    A NaN score counts as the least likely: what the row gets is wrong, where it goes is in range.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, BLOCK)
    live = row < num_rows
    mask = live[:, None] & (expert < NUM_EXPERTS)[None, :]
    at = row.to(tl.int64)[:, None] * NUM_EXPERTS + expert[None, :]
    score = tl.load(scores_ptr + at, mask=mask, other=float("-inf")).to(tl.float32)
    score = tl.where(score == score, score, float("-inf"))
    # Minus infinity is what experts become once taken, so no score may be that low.
    score = tl.where((expert < NUM_EXPERTS)[None, :], tl.maximum(score, -3.0e38), float("-inf"))
    largest = tl.max(score, 1)
    kept = tl.zeros((ROWS,), tl.float32)
    left = score
    for _ in tl.static_range(TOP_K):
        best = tl.max(left, 1)
        kept += tl.exp(best - largest)
        taken = tl.argmax(left, 1)
        left = tl.where(expert[None, :] == taken[:, None], float("-inf"), left)
    left = score
    for choice in tl.static_range(TOP_K):
        best = tl.max(left, 1)
        taken = tl.argmax(left, 1)
        left = tl.where(expert[None, :] == taken[:, None], float("-inf"), left)
        out = row.to(tl.int64) * TOP_K + choice
        tl.store(shares_ptr + out, tl.exp(best - largest) / kept, mask=live)
        tl.store(experts_ptr + out, taken.to(tl.int32), mask=live)


@triton.jit
def _group_kernel(
    experts_ptr: tl.tensor,
    order_ptr: tl.tensor,
    counts_ptr: tl.tensor,
    num_choices: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One program lists the choices of one expert, behind those of the experts before it."""
    own = tl.program_id(0)
    before = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, num_choices, BLOCK):
        choice = first + tl.arange(0, BLOCK)
        expert = tl.load(experts_ptr + choice, mask=choice < num_choices, other=2147483647)
        before += (expert < own).to(tl.int32)
    begin = tl.sum(before, 0)
    end = begin
    for first in range(0, num_choices, BLOCK):
        choice = first + tl.arange(0, BLOCK)
        expert = tl.load(experts_ptr + choice, mask=choice < num_choices, other=2147483647)
        is_own = (expert == own).to(tl.int32)
        place = end + tl.cumsum(is_own, 0) - 1
        tl.store(order_ptr + place, choice, mask=is_own > 0)
        end += tl.sum(is_own, 0)
    tl.store(counts_ptr + own, end - begin)


@triton.jit
def _find_tile(
    counts_ptr: tl.tensor,
    tile: tl.tensor,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_PAD: tl.constexpr,
    ROWS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Which expert a tile belongs to, where in `order` it begins, and where that expert ends.

    Behind the last tile: expert NUM_EXPERTS or more.
    """
    expert = tl.arange(0, EXPERTS_PAD)
    count = tl.load(counts_ptr + expert, mask=expert < NUM_EXPERTS, other=0)
    num_tiles = (count + ROWS - 1) // ROWS
    tiles_end = tl.cumsum(num_tiles, 0)
    own = tl.sum((tiles_end <= tile).to(tl.int32), 0)  # experts whose tiles all come before
    is_own = expert == own
    begin = tl.sum(tl.where(expert < own, count, 0), 0)
    end = begin + tl.sum(tl.where(is_own, count, 0), 0)
    number = tile - tl.sum(tl.where(expert < own, num_tiles, 0), 0)
    return own, begin + number * ROWS, end


@triton.jit
def _gate_up_kernel(
    x_ptr: tl.tensor,
    gate_up_ptr: tl.tensor,
    order_ptr: tl.tensor,
    counts_ptr: tl.tensor,
    gated_ptr: tl.tensor,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_PAD: tl.constexpr,
    TOP_K: tl.constexpr,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """Grid (tiles of choices, tiles of inner columns): gate and up of the same columns."""
    expert, begin, end = _find_tile(counts_ptr, tl.program_id(0), NUM_EXPERTS, EXPERTS_PAD, ROWS)
    if expert < NUM_EXPERTS:
        place = begin + tl.arange(0, ROWS)
        live = place < end
        row = tl.load(order_ptr + place, mask=live, other=0).to(tl.int64) // TOP_K
        col = tl.program_id(1) * COLS + tl.arange(0, COLS)
        in_row = col < INNER
        weight_ptr = gate_up_ptr + expert.to(tl.int64) * (2 * INNER * WIDTH)
        gate = tl.zeros((ROWS, COLS), tl.float32)
        up = tl.zeros((ROWS, COLS), tl.float32)
        for first in range(0, WIDTH, DEPTH):
            k = first + tl.arange(0, DEPTH)
            in_depth = k < WIDTH
            at = row[:, None] * WIDTH + k[None, :]
            x = tl.load(x_ptr + at, mask=live[:, None] & in_depth[None, :], other=0.0)
            w_at = col[:, None] * WIDTH + k[None, :]
            w_mask = in_row[:, None] & in_depth[None, :]
            w_gate = tl.load(weight_ptr + w_at, mask=w_mask, other=0.0)
            w_up = tl.load(weight_ptr + INNER * WIDTH + w_at, mask=w_mask, other=0.0)
            if UPCAST:
                x = x.to(tl.float32)
                w_gate = w_gate.to(tl.float32)
                w_up = w_up.to(tl.float32)
            gate = tl.dot(x, tl.trans(w_gate), gate, input_precision="ieee")
            up = tl.dot(x, tl.trans(w_up), up, input_precision="ieee")
        dtype = gated_ptr.dtype.element_ty
        y = activate(gate, KIND).to(dtype).to(tl.float32) * up
        out = gated_ptr + place.to(tl.int64)[:, None] * INNER + col[None, :]
        tl.store(out, y.to(dtype), mask=live[:, None] & in_row[None, :])


@triton.jit
def _down_kernel(
    gated_ptr: tl.tensor,
    down_ptr: tl.tensor,
    order_ptr: tl.tensor,
    counts_ptr: tl.tensor,
    chosen_ptr: tl.tensor,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_PAD: tl.constexpr,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """Grid (tiles of choices, tiles of columns): results go back to the order of choices."""
    expert, begin, end = _find_tile(counts_ptr, tl.program_id(0), NUM_EXPERTS, EXPERTS_PAD, ROWS)
    if expert < NUM_EXPERTS:
        place = begin + tl.arange(0, ROWS)
        live = place < end
        choice = tl.load(order_ptr + place, mask=live, other=0).to(tl.int64)
        col = tl.program_id(1) * COLS + tl.arange(0, COLS)
        in_row = col < WIDTH
        weight_ptr = down_ptr + expert.to(tl.int64) * (WIDTH * INNER)
        y = tl.zeros((ROWS, COLS), tl.float32)
        for first in range(0, INNER, DEPTH):
            k = first + tl.arange(0, DEPTH)
            in_depth = k < INNER
            at = place.to(tl.int64)[:, None] * INNER + k[None, :]
            x = tl.load(gated_ptr + at, mask=live[:, None] & in_depth[None, :], other=0.0)
            w_at = col[:, None] * INNER + k[None, :]
            w_mask = in_row[:, None] & in_depth[None, :]
            w = tl.load(weight_ptr + w_at, mask=w_mask, other=0.0)
            if UPCAST:
                x = x.to(tl.float32)
                w = w.to(tl.float32)
            y = tl.dot(x, tl.trans(w), y, input_precision="ieee")
        out = chosen_ptr + choice[:, None] * WIDTH + col[None, :]
        tl.store(out, y.to(chosen_ptr.dtype.element_ty), mask=live[:, None] & in_row[None, :])


@triton.jit
def _combine_kernel(
    chosen_ptr: tl.tensor,
    shares_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_rows: tl.tensor,
    WIDTH: tl.constexpr,
    TOP_K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
) -> None:
    """One program sums the choices of ROWS rows."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    live = row < num_rows
    mask = live[:, None] & (cols < WIDTH)[None, :]
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for number in tl.static_range(TOP_K):
        choice = row * TOP_K + number
        share = tl.load(shares_ptr + choice, mask=live, other=0.0)
        at = choice[:, None] * WIDTH + cols[None, :]
        total += share[:, None] * tl.load(chosen_ptr + at, mask=mask, other=0.0).to(tl.float32)
    at = row[:, None] * WIDTH + cols[None, :]
    dtype = out_ptr.dtype.element_ty
    y = total.to(dtype)
    if HAS_RESIDUAL:
        before = tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
        y = (y.to(tl.float32) + before).to(dtype)
    tl.store(out_ptr + at, y, mask=mask)


def mixture_of_experts(
    x: Tensor,
    router: Tensor,
    gate_up: Tensor,
    down: Tensor,
    top_k: int,
    activation: Activation,
    out: Tensor,
    workspace: Workspace,
    residual: Tensor | None = None,
) -> None:
    """Write `out`; see the module docstring for shapes.

    Args:
        workspace: with room for `len(x) * top_k` choices.
    """
    num_experts, width, inner = down.shape
    assert x.shape == out.shape == (len(x), width)
    assert router.shape == (num_experts, width)
    assert gate_up.shape == (num_experts, 2 * inner, width)
    assert len(workspace.order) >= len(x) * top_k
    assert all(t is None or t.is_contiguous() for t in (x, gate_up, down, out, residual))
    if len(x) == 0:
        return
    _route(x, router, top_k, workspace)
    _multiply(x, gate_up, down, top_k, activation, workspace)
    tiles = tile_rows(len(x), width)
    _combine_kernel[(tiles.num_programs,)](
        workspace.chosen,
        workspace.shares,
        out if residual is None else residual,
        out,
        len(x),
        WIDTH=width,
        TOP_K=top_k,
        ROWS=tiles.rows,
        BLOCK=tiles.width,
        HAS_RESIDUAL=residual is not None,
        num_warps=tiles.num_warps,
    )


def _route(x: Tensor, router: Tensor, top_k: int, workspace: Workspace) -> None:
    """Steps 1 and 2."""
    num_experts = len(router)
    scores = workspace.scores[: len(x)]
    torch.mm(x, router.t(), out=scores)
    tiles = tile_rows(len(x), num_experts)
    _route_kernel[(tiles.num_programs,)](
        scores,
        workspace.shares,
        workspace.experts,
        len(x),
        NUM_EXPERTS=num_experts,
        TOP_K=top_k,
        ROWS=tiles.rows,
        BLOCK=tiles.width,
    )
    _group_kernel[(num_experts,)](
        workspace.experts,
        workspace.order,
        workspace.counts,
        len(x) * top_k,
        BLOCK=_GROUP_BLOCK,
    )


def _multiply(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    top_k: int,
    activation: Activation,
    workspace: Workspace,
) -> None:
    """Step 3."""
    num_choices = len(x) * top_k
    num_experts, width, inner = down.shape
    tiles = expert_tiles(num_choices, num_experts, x.element_size())
    # Each expert may have one tile that is not full, but none has a tile without a choice.
    num_tiles = min(num_choices, num_choices // tiles.rows + num_experts)
    common = {
        "NUM_EXPERTS": num_experts,
        "EXPERTS_PAD": triton.next_power_of_2(num_experts),
        "WIDTH": width,
        "INNER": inner,
        "ROWS": tiles.rows,
        "COLS": tiles.cols,
        "DEPTH": tiles.depth,
        "UPCAST": must_upcast(x.dtype),
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }
    w = workspace
    _gate_up_kernel[(num_tiles, triton.cdiv(inner, tiles.cols))](
        x, gate_up, w.order, w.counts, w.gated, TOP_K=top_k, KIND=activation, **common
    )
    _down_kernel[(num_tiles, triton.cdiv(width, tiles.cols))](
        w.gated, down, w.order, w.counts, w.chosen, **common
    )
