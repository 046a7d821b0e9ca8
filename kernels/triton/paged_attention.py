"""Causal attention of a ragged batch over the paged KV cache: decodes and chunks in one launch.

    q                [num_tokens, num_heads, head_dim], rows `q.stride(0)` apart
    k_cache, v_cache [num_blocks, block_size, num_kv_heads, head_dim], q's dtype or float8_e4m3fn
    block_tables     [num_seqs * max_num_blocks] int32, one table behind the other
    items, merges    int32, from `kernels.triton.attention_plan`
    out              [num_tokens, num_heads * head_dim], q's dtype

What is computed stands in `kernels.paged_attention`. A program reads the keys of one item for one
KV head, and serves all query heads that share it. Rows of a tile are (query, head of the group),
so that decodes of grouped heads fill a tensor core tile as well as chunks do; the tile of a
decode is small, that of a chunk large, and the item tells which.

Scores, softmax and sums are float32, in base 2. Where rows that belong to no item (padding) lie in
`out`, nothing is written. How keys are split depends on the whole batch, so the last bits do.

Memory bound for decodes: 2 * kv_len * num_kv_heads * head_dim * itemsize bytes per sequence.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.attention_plan import ITEM_FIELDS, MERGE_FIELDS, Tiling
from kernels.triton.interpreter import must_upcast

_LOG2_E = 1.4426950408889634  # kernels know only exp2, so scores carry this factor
# The least number of rows and columns that tensor cores multiply.
_MIN_TILE = 16
_MERGED_AT_ONCE = 16  # queries of one program that merges: more would spill


@dataclass(frozen=True, slots=True)
class TileConfig:
    """Sizes that suit a head dimension."""

    chunk_rows: int  # rows (query, head) of a chunk's tile
    keys: int
    num_warps: int  # 4 suffice where all tiles are decodes'
    num_stages: int  # tiles of keys in flight


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What a launch is compiled for."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int | None = None
    soft_cap: float | None = None

    @property
    def group_pad(self) -> int:
        """Query heads per KV head, as a power of two."""
        return int(triton.next_power_of_2(self.num_heads // self.num_kv_heads))

    @property
    def dim_pad(self) -> int:
        return max(int(triton.next_power_of_2(self.head_dim)), _MIN_TILE)


@dataclass(frozen=True, slots=True)
class Partials:
    """Where the programs of split tiles leave what they found."""

    out: Tensor  # [num_rows, num_heads, head_dim] float32
    lse: Tensor  # [num_rows, num_heads] float32: log2 of the sum of 2 ** score


def tile_config(head_dim: int, itemsize: int) -> TileConfig:
    """Choose by the bytes of one key of one head; a plain table, for tuning takes minutes.

    These compile without spills, and within 100 KB of shared memory (64 KB on AMD), for the devices
    that `tests/kernels/triton/test_compile.py` names.

    Args:
        head_dim: padded to a power of two.
        itemsize: of q, bytes.
    """
    match head_dim * itemsize:
        case num_bytes if num_bytes <= 256:
            return TileConfig(chunk_rows=128, keys=64, num_warps=8, num_stages=3)
        case 512:
            return TileConfig(chunk_rows=64, keys=32, num_warps=8, num_stages=2)
        case _:
            return TileConfig(chunk_rows=32, keys=16, num_warps=8, num_stages=2)


def make_tiling(shape: AttentionShape, config: TileConfig, num_programs: int) -> Tiling:
    """How `plan_attention` has to cut for a launch of this shape.

    Args:
        num_programs: that fill the device.
    """
    decode_queries = max(1, _MIN_TILE // shape.group_pad)
    return Tiling(
        decode_queries=decode_queries,
        chunk_queries=max(decode_queries, config.chunk_rows // shape.group_pad),
        keys=config.keys,
        max_num_splits=-(-num_programs // shape.num_kv_heads),
    )


@triton.jit
def _tanh(x: tl.tensor) -> tl.tensor:
    """Right at both ends, where `exp` is 0 or infinite."""
    return 1 - 2 / (tl.exp(2 * x) + 1)


@triton.jit
def _attend(
    q_ptr: tl.tensor,
    k_cache_ptr: tl.tensor,
    v_cache_ptr: tl.tensor,
    out_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    block_tables_ptr: tl.tensor,
    item_ptr: tl.tensor,
    q_stride: tl.tensor,
    scale: tl.tensor,
    soft_cap: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: none
    HAS_CAP: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """One item of at most QUERIES queries, for one KV head."""
    first_row = tl.load(item_ptr)
    num_queries = tl.load(item_ptr + 1)
    first_position = tl.load(item_ptr + 2)
    begin = tl.load(item_ptr + 3)
    end = tl.load(item_ptr + 4)
    table = tl.load(item_ptr + 5)
    partial_row = tl.load(item_ptr + 6)
    kv_head = tl.program_id(1)
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS

    rows = tl.arange(0, QUERIES * GROUP_PAD)
    query = rows // GROUP_PAD
    head = kv_head * GROUP + rows % GROUP_PAD
    live = (query < num_queries) & (rows % GROUP_PAD < GROUP)
    position = first_position + query
    dims = tl.arange(0, DIM_PAD)
    in_head = dims < HEAD_DIM

    q_row = (first_row + query).to(tl.int64) * q_stride + head * HEAD_DIM
    q_mask = live[:, None] & in_head[None, :]
    q = tl.load(q_ptr + q_row[:, None] + dims[None, :], mask=q_mask, other=0.0)
    if UPCAST:
        q = q.to(tl.float32)

    largest = tl.full((QUERIES * GROUP_PAD,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES * GROUP_PAD,), tl.float32)
    acc = tl.zeros((QUERIES * GROUP_PAD, DIM_PAD), tl.float32)
    for first_key in range(begin, end, KEYS):
        key = first_key + tl.arange(0, KEYS)
        # What lies behind the sequence's end may be anything, NaN too: it must not be read.
        exists = key < end
        block = tl.load(block_tables_ptr + table + key // BLOCK_SIZE, mask=exists, other=0)
        slot = block.to(tl.int64) * BLOCK_SIZE + key % BLOCK_SIZE
        at = (slot * NUM_KV_HEADS + kv_head) * HEAD_DIM
        kv_mask = exists[:, None] & in_head[None, :]
        k = tl.load(k_cache_ptr + at[:, None] + dims[None, :], mask=kv_mask, other=0.0).to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if HAS_CAP:
            scores = soft_cap * _tanh(scores)
        seen = exists[None, :] & (key[None, :] <= position[:, None])
        if WINDOW > 0:
            seen = seen & (key[None, :] > position[:, None] - WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        # A row that has seen no key yet keeps -inf; 0 in its place keeps NaN out of exp2.
        base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        shrink = tl.exp2(largest - base)
        weights = tl.exp2(scores - base[:, None])
        total = total * shrink + tl.sum(weights, 1)
        v = tl.load(v_cache_ptr + at[:, None] + dims[None, :], mask=kv_mask, other=0.0).to(q.dtype)
        acc = tl.dot(weights.to(q.dtype), v, acc * shrink[:, None], input_precision="ieee")
        largest = new_largest

    # Rows without a key are padding, or have their keys in other splits.
    acc = acc / tl.where(total == 0, 1.0, total)[:, None]
    if partial_row < 0:
        row = (first_row + query).to(tl.int64) * NUM_HEADS + head
        result = acc.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + row[:, None] * HEAD_DIM + dims[None, :], result, mask=q_mask)
    else:
        row = (partial_row + query).to(tl.int64) * NUM_HEADS + head
        tl.store(partial_ptr + row[:, None] * HEAD_DIM + dims[None, :], acc, mask=q_mask)
        tl.store(lse_ptr + row, largest + tl.log2(total), mask=live)


@triton.jit
def _paged_attention_kernel(
    q_ptr: tl.tensor,
    k_cache_ptr: tl.tensor,
    v_cache_ptr: tl.tensor,
    out_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    block_tables_ptr: tl.tensor,
    items_ptr: tl.tensor,
    q_stride: tl.tensor,
    scale: tl.tensor,
    soft_cap: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DECODE_QUERIES: tl.constexpr,
    CHUNK_QUERIES: tl.constexpr,  # 0: the batch has no chunks
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    UPCAST: tl.constexpr,
    ITEM_FIELDS: tl.constexpr,
) -> None:
    """Grid (items, KV heads)."""
    item_ptr = items_ptr + tl.program_id(0) * ITEM_FIELDS
    num_queries = tl.load(item_ptr + 1)
    # fmt: off
    if (num_queries > 0) & (num_queries <= DECODE_QUERIES):
        _attend(
            q_ptr, k_cache_ptr, v_cache_ptr, out_ptr, partial_ptr, lse_ptr, block_tables_ptr,
            item_ptr, q_stride, scale, soft_cap, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, DIM_PAD,
            GROUP_PAD, BLOCK_SIZE, DECODE_QUERIES, KEYS, WINDOW, HAS_CAP, UPCAST,
        )
    if CHUNK_QUERIES > DECODE_QUERIES:  # noqa: SIM102, so that one is decided at compile time
        if num_queries > DECODE_QUERIES:
            _attend(
                q_ptr, k_cache_ptr, v_cache_ptr, out_ptr, partial_ptr, lse_ptr, block_tables_ptr,
                item_ptr, q_stride, scale, soft_cap, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, DIM_PAD,
                GROUP_PAD, BLOCK_SIZE, CHUNK_QUERIES, KEYS, WINDOW, HAS_CAP, UPCAST,
            )
    # fmt: on


@triton.jit
def _merge_kernel(
    partial_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    out_ptr: tl.tensor,
    merges_ptr: tl.tensor,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    QUERIES: tl.constexpr,
    MERGE_FIELDS: tl.constexpr,
) -> None:
    """Grid (merges, heads, parts of a tile): join splits for QUERIES queries of one head."""
    merge_ptr = merges_ptr + tl.program_id(0) * MERGE_FIELDS
    head = tl.program_id(1)
    first_row = tl.load(merge_ptr)
    num_queries = tl.load(merge_ptr + 1)
    first_partial = tl.load(merge_ptr + 2)
    num_splits = tl.load(merge_ptr + 3)
    query = tl.program_id(2) * QUERIES + tl.arange(0, QUERIES)
    live = query < num_queries
    dims = tl.arange(0, DIM_PAD)
    mask = live[:, None] & (dims < HEAD_DIM)[None, :]

    largest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    acc = tl.zeros((QUERIES, DIM_PAD), tl.float32)
    for split in range(num_splits):
        row = (first_partial + split * num_queries + query).to(tl.int64) * NUM_HEADS + head
        lse = tl.load(lse_ptr + row, mask=live, other=float("-inf"))
        part = tl.load(partial_ptr + row[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
        new_largest = tl.maximum(largest, lse)
        base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        shrink = tl.exp2(largest - base)
        weight = tl.exp2(lse - base)
        total = total * shrink + weight
        acc = acc * shrink[:, None] + part * weight[:, None]
        largest = new_largest
    acc = acc / tl.where(total == 0, 1.0, total)[:, None]
    row = (first_row + query).to(tl.int64) * NUM_HEADS + head
    result = acc.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row[:, None] * HEAD_DIM + dims[None, :], result, mask=mask)


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    items: Tensor,
    merges: Tensor,
    partials: Partials,
    out: Tensor,
    shape: AttentionShape,
    tiling: Tiling,
    config: TileConfig,
    decode_only: bool = False,
) -> None:
    """Attend, writing `out`; see the module docstring for shapes.

    Args:
        items, merges: rows of zeros are skipped, so both may be longer than the plan.
        partials: with room for the plan's rows, if it has merges.
        decode_only: no item has more than `tiling.decode_queries` queries.
    """
    num_kv_heads, head_dim = k_cache.shape[2:]
    assert (num_kv_heads, head_dim) == (shape.num_kv_heads, shape.head_dim)
    assert q.shape[1] * q.stride(1) == shape.num_heads * head_dim
    assert q.stride(-1) == 1
    assert all(t.is_contiguous() for t in (k_cache, v_cache, block_tables, items, merges, out))
    if len(items) == 0:
        return
    _paged_attention_kernel[(len(items), num_kv_heads)](
        q,
        k_cache,
        v_cache,
        out,
        partials.out,
        partials.lse,
        block_tables,
        items,
        q.stride(0),
        *_factors(shape),
        NUM_HEADS=shape.num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        DIM_PAD=shape.dim_pad,
        GROUP_PAD=shape.group_pad,
        BLOCK_SIZE=k_cache.shape[1],
        DECODE_QUERIES=tiling.decode_queries,
        CHUNK_QUERIES=0 if decode_only else tiling.chunk_queries,
        KEYS=tiling.keys,
        WINDOW=shape.sliding_window or 0,
        HAS_CAP=shape.soft_cap is not None,
        UPCAST=must_upcast(q.dtype),
        ITEM_FIELDS=ITEM_FIELDS,
        num_warps=min(config.num_warps, 4) if decode_only else config.num_warps,
        num_stages=config.num_stages,
    )
    if len(merges):
        tile = tiling.decode_queries if decode_only else tiling.chunk_queries
        queries = min(tile, _MERGED_AT_ONCE)
        _merge_kernel[(len(merges), shape.num_heads, tile // queries)](
            partials.out,
            partials.lse,
            out,
            merges,
            NUM_HEADS=shape.num_heads,
            HEAD_DIM=head_dim,
            DIM_PAD=shape.dim_pad,
            QUERIES=queries,
            MERGE_FIELDS=MERGE_FIELDS,
        )


def _factors(shape: AttentionShape) -> tuple[float, float]:
    """What the kernel multiplies scores by, and by what the tanh of that."""
    if shape.soft_cap is None:
        return shape.scale * _LOG2_E, 0.0
    return shape.scale / shape.soft_cap, shape.soft_cap * _LOG2_E


def make_partials(num_rows: int, num_heads: int, head_dim: int, device: torch.device) -> Partials:
    """Room for partial results; uninitialised."""
    return Partials(
        torch.empty(num_rows, num_heads, head_dim, dtype=torch.float32, device=device),
        torch.empty(num_rows, num_heads, dtype=torch.float32, device=device),
    )
