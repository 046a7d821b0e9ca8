"""Attention kernels against the reference: odd shapes, split keys, poisoned slots and outputs."""

import dataclasses

import numpy as np
import pytest
import torch

from kernels.paged_attention import group_sequences, paged_attention_reference
from kernels.ragged_batch import RaggedBatch
from kernels.triton.attention_plan import plan_attention
from kernels.triton.paged_attention import (
    AttentionShape,
    TileConfig,
    make_partials,
    make_tiling,
    paged_attention,
)

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
# Queries and KV length of each sequence: decodes long and short, a whole prompt, chunks.
MIXED = [(1, 1), (1, 150), (5, 5), (19, 40), (2, 71)]
DECODES = [(1, 1), (1, 150), (1, 33)]
CONFIG = TileConfig(chunk_rows=32, keys=32, num_warps=4, num_stages=2)
NUM_BLOCKS = 50


def make_batch(shapes: list[tuple[int, int]], block_size: int) -> RaggedBatch:
    """Sequences of (queries, kv length); behind each block table stands a block that is not."""
    blocks = np.random.default_rng(0).permutation(NUM_BLOCKS).astype(np.int32)
    width = max(-(-kv // block_size) for _, kv in shapes)
    tables = np.full((len(shapes), width), 2**31 - 1, np.int32)
    for row, (_, kv_len) in zip(tables, shapes, strict=True):
        count = -(-kv_len // block_size)
        row[:count], blocks = blocks[:count], blocks[count:]
    queries = [n for n, _ in shapes]
    empty = np.zeros(sum(queries), np.int32)
    return RaggedBatch(
        token_ids=empty,
        positions=np.concatenate([np.arange(kv - n, kv) for n, kv in shapes]).astype(np.int32),
        cu_seqlens_q=np.cumsum([0, *queries], dtype=np.int32),
        kv_lens=np.array([kv for _, kv in shapes], np.int32),
        block_tables=tables,
        slot_mapping=empty,
        logits_index=empty[:0],
    )


@dataclasses.dataclass
class Tensors:
    """A batch's queries, inside wider rows, and a cache in which only live slots are numbers."""

    batch: RaggedBatch
    qkv: torch.Tensor
    k: torch.Tensor  # [num_blocks, block_size, num_kv_heads, head_dim]
    v: torch.Tensor

    def q(self, shape: AttentionShape) -> torch.Tensor:
        q = self.qkv[:, : shape.num_heads * shape.head_dim]
        return q.view(len(q), shape.num_heads, shape.head_dim)


def make_tensors(
    shapes: list[tuple[int, int]],
    shape: AttentionShape,
    dtype: torch.dtype,
    device: torch.device,
    block_size: int = 16,
    kv_dtype: torch.dtype | None = None,
) -> Tensors:
    batch = make_batch(shapes, block_size)
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(
        batch.num_tokens, (shape.num_heads + 2) * shape.head_dim, generator=generator
    ).to(dtype)
    kv_shape = (NUM_BLOCKS * block_size, shape.num_kv_heads, shape.head_dim)
    k, v = (torch.randn(kv_shape, generator=generator) for _ in range(2))
    live = torch.zeros(NUM_BLOCKS * block_size, dtype=torch.bool)
    for table, kv_len in zip(batch.block_tables, batch.kv_lens, strict=True):
        key = np.arange(kv_len)
        live[table[key // block_size] * block_size + key % block_size] = True
    k[~live] = v[~live] = float("nan")
    k, v = (x.to(kv_dtype or dtype).view(NUM_BLOCKS, block_size, *kv_shape[1:]) for x in (k, v))
    return Tensors(batch, qkv.to(device), k.to(device), v.to(device))


def run(
    tensors: Tensors,
    shape: AttentionShape,
    num_programs: int,
    num_padding_items: int = 0,
    decode_only: bool = False,
) -> torch.Tensor:
    """The kernels' result; what they do not write is NaN."""
    device = tensors.qkv.device
    tiling = make_tiling(shape, CONFIG, num_programs)
    plan = plan_attention(tensors.batch, tiling, shape.sliding_window)
    items, merges = (
        torch.from_numpy(np.pad(rows, ((0, num_padding_items), (0, 0)))).to(device)
        for rows in (plan.items, plan.merges)
    )
    num_rows = tiling.max_num_partial_rows(decode_only)
    partials = make_partials(num_rows, shape.num_heads, shape.head_dim, device)
    partials.out.fill_(float("nan"))
    partials.lse.fill_(float("nan"))
    q = tensors.q(shape)
    out = torch.full((len(q), q[0].numel()), float("nan"), dtype=q.dtype, device=device)
    tables = torch.from_numpy(tensors.batch.block_tables.ravel()).to(device)
    paged_attention(
        *(q, tensors.k, tensors.v, tables, items, merges, partials, out),
        *(shape, tiling, CONFIG, decode_only),
    )
    return out


def reference(tensors: Tensors, shape: AttentionShape) -> torch.Tensor:
    q = tensors.q(shape)
    k, v = (with_zero_slot(cache.flatten(0, 1).to(q.dtype)) for cache in (tensors.k, tensors.v))
    batch = dataclasses.replace(
        tensors.batch,  # the reference gathers from padding, and then masks it
        block_tables=np.where(
            tensors.batch.block_tables == 2**31 - 1, 0, tensors.batch.block_tables
        ),
    )
    block_size = tensors.k.shape[1]
    groups = group_sequences(batch, block_size, len(k) - 1, q, shape.sliding_window)
    return paged_attention_reference(q, k, v, groups, shape.scale, shape.soft_cap)


def with_zero_slot(cache: torch.Tensor) -> torch.Tensor:
    return torch.cat([cache, torch.zeros_like(cache[:1])])


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("num_programs", [2, 64], ids=["whole", "split"])
def test_a_mixed_batch_is_what_the_reference_says(
    dtype: torch.dtype, num_programs: int, device: torch.device
) -> None:
    shape = AttentionShape(num_heads=6, num_kv_heads=2, head_dim=20, scale=0.3)
    tensors = make_tensors(MIXED, shape, dtype, device)

    out = run(tensors, shape, num_programs)

    assert_close(out, reference(tensors, shape))


@pytest.mark.parametrize(
    "shape",
    [
        AttentionShape(4, 4, 64, 0.125),
        AttentionShape(3, 1, 80, 0.1),
        AttentionShape(9, 3, 96, 0.1),
        AttentionShape(8, 1, 128, 0.1),
        AttentionShape(2, 1, 256, 0.06),
        AttentionShape(71, 1, 8, 0.3),
        AttentionShape(1, 1, 7, 0.3),
    ],
    ids=lambda shape: f"{shape.num_heads}/{shape.num_kv_heads}x{shape.head_dim}",
)
def test_heads_of_any_shape(shape: AttentionShape, device: torch.device) -> None:
    tensors = make_tensors([(1, 70), (18, 33)], shape, torch.float16, device)

    assert_close(run(tensors, shape, num_programs=8), reference(tensors, shape))


@pytest.mark.parametrize("num_programs", [2, 64], ids=["whole", "split"])
@pytest.mark.parametrize(("window", "soft_cap"), [(13, None), (None, 2.5), (64, 1.5), (1, None)])
def test_windows_and_soft_caps(
    window: int | None, soft_cap: float | None, num_programs: int, device: torch.device
) -> None:
    shape = AttentionShape(4, 2, 16, 0.3, window, soft_cap)
    tensors = make_tensors(MIXED, shape, torch.float32, device)

    assert_close(run(tensors, shape, num_programs), reference(tensors, shape))


@pytest.mark.parametrize("block_size", [1, 5, 48])
def test_blocks_of_any_size(block_size: int, device: torch.device) -> None:
    shape = AttentionShape(2, 1, 16, 0.3)
    tensors = make_tensors([(1, 30), (3, 9)], shape, torch.float32, device, block_size)

    assert_close(run(tensors, shape, num_programs=2), reference(tensors, shape))


def test_decodes_alone_need_no_code_for_chunks(device: torch.device) -> None:
    shape = AttentionShape(6, 2, 16, 0.3)
    tensors = make_tensors(DECODES, shape, torch.float32, device)

    out = run(tensors, shape, num_programs=64, decode_only=True)

    assert_close(out, reference(tensors, shape))


def test_items_of_zeros_do_nothing(device: torch.device) -> None:
    shape = AttentionShape(6, 2, 16, 0.3)
    tensors = make_tensors(MIXED, shape, torch.float32, device)

    padded = run(tensors, shape, num_programs=64, num_padding_items=5)

    assert torch.equal(padded, run(tensors, shape, num_programs=64))


def test_a_cache_of_float8_is_read_as_what_it_stores(device: torch.device) -> None:
    shape = AttentionShape(6, 2, 16, 0.3)
    tensors = make_tensors(MIXED, shape, torch.float16, device, kv_dtype=torch.float8_e4m3fn)

    assert_close(run(tensors, shape, num_programs=64), reference(tensors, shape))


def test_a_prompt_in_chunks_is_the_prompt_at_once(device: torch.device) -> None:
    shape = AttentionShape(2, 1, 16, 0.3)
    at_once = make_tensors([(40, 40)], shape, torch.float32, device)
    whole = run(at_once, shape, num_programs=2)

    parts = []
    for begin, end in ((0, 17), (17, 39), (39, 40)):
        batch = make_batch([(end - begin, end)], 16)
        batch = dataclasses.replace(batch, block_tables=at_once.batch.block_tables)
        chunk = dataclasses.replace(at_once, batch=batch, qkv=at_once.qkv[begin:end])
        parts.append(run(chunk, shape, num_programs=2))

    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=1e-6)
