"""Paged attention against loops over single queries, in float64."""

import numpy as np
import pytest
import torch

from kernels.paged_attention import group_sequences, paged_attention_reference
from kernels.ragged_batch import RaggedBatch

KV_HEADS, HEAD_DIM, BLOCK_SIZE, NUM_BLOCKS = 2, 10, 8, 90
NUM_SLOTS = NUM_BLOCKS * BLOCK_SIZE
# Queries and KV length of each sequence: decodes long and short, a whole prompt, chunks.
MIXED = [(1, 1), (1, 9), (5, 5), (1, 200), (17, 40), (1, 70), (2, 131)]


def make_batch(shapes: list[tuple[int, int]], seed: int = 0) -> RaggedBatch:
    """Sequences of (queries, kv length), whose blocks lie scattered over the cache."""
    blocks = np.random.default_rng(seed).permutation(NUM_BLOCKS).astype(np.int32)
    tables = np.zeros((len(shapes), max(-(-kv // BLOCK_SIZE) for _, kv in shapes)), np.int32)
    for row, (_, kv_len) in zip(tables, shapes, strict=True):
        count = -(-kv_len // BLOCK_SIZE)
        row[:count], blocks = blocks[:count], blocks[count:]
    queries = [n for n, _ in shapes]
    positions = np.concatenate([np.arange(kv - n, kv) for n, kv in shapes]).astype(np.int32)
    empty = np.zeros(sum(queries), np.int32)
    return RaggedBatch(
        token_ids=empty,
        positions=positions,
        cu_seqlens_q=np.cumsum([0, *queries], dtype=np.int32),
        kv_lens=np.array([kv for _, kv in shapes], np.int32),
        block_tables=tables,
        slot_mapping=empty,
        logits_index=empty[:0],
    )


def make_tensors(
    batch: RaggedBatch, num_heads: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(batch.num_tokens, num_heads, HEAD_DIM, generator=generator)
    k, v = torch.randn(2, NUM_SLOTS + 1, KV_HEADS, HEAD_DIM, generator=generator)
    k[-1] = v[-1] = 0
    return q.to(dtype), k.to(dtype), v.to(dtype)


def attend_one_by_one(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    batch: RaggedBatch,
    scale: float,
    window: int | None,
    soft_cap: float | None,
) -> torch.Tensor:
    out = torch.empty(q.shape, dtype=torch.float64)
    group = q.shape[1] // KV_HEADS
    for sequence in range(batch.num_seqs):
        table = batch.block_tables[sequence]
        for row in range(batch.cu_seqlens_q[sequence], batch.cu_seqlens_q[sequence + 1]):
            position = int(batch.positions[row])
            first = 0 if window is None else max(0, position - window + 1)
            seen = range(first, position + 1)
            slots = [int(table[p // BLOCK_SIZE]) * BLOCK_SIZE + p % BLOCK_SIZE for p in seen]
            for head in range(q.shape[1]):
                keys, values = (x[slots, head // group].double() for x in (k, v))
                scores = keys @ q[row, head].double() * scale
                if soft_cap is not None:
                    scores = soft_cap * torch.tanh(scores / soft_cap)
                out[row, head] = torch.softmax(scores, 0) @ values
    return out.flatten(1)


@pytest.mark.parametrize("num_heads", [2, 6])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)]
)
@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (13, None), (None, 2.5), (64, 1.5)])
def test_a_mixed_batch_is_each_query_alone(
    num_heads: int, dtype: torch.dtype, tolerance: float, window: int | None, soft_cap: float | None
) -> None:
    batch = make_batch(MIXED)
    q, k, v = make_tensors(batch, num_heads, dtype)

    groups = group_sequences(batch, BLOCK_SIZE, NUM_SLOTS, q, window)
    out = paged_attention_reference(q, k, v, groups, 0.3, soft_cap)

    expected = attend_one_by_one(q, k, v, batch, 0.3, window, soft_cap)
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)


def test_slots_that_are_not_a_sequences_own_may_hold_anything() -> None:
    batch = make_batch(MIXED)
    q, k, v = make_tensors(batch, 6, torch.float32)
    groups = group_sequences(batch, BLOCK_SIZE, NUM_SLOTS, q)
    clean = paged_attention_reference(q, k, v, groups, 0.3)
    own = torch.zeros(NUM_SLOTS + 1, dtype=torch.bool)
    own[-1] = True
    for sequence, kv_len in enumerate(batch.kv_lens.tolist()):
        position = np.arange(kv_len)
        blocks = batch.block_tables[sequence][position // BLOCK_SIZE]
        own[blocks * BLOCK_SIZE + position % BLOCK_SIZE] = True
    k[~own] = v[~own] = float("nan")

    dirty = paged_attention_reference(q, k, v, groups, 0.3)

    assert torch.equal(dirty, clean)


def test_decodes_of_similar_length_share_a_call() -> None:
    batch = make_batch([(1, 3), (1, 60), (1, 100), (1, 120), (4, 10)])

    groups = group_sequences(batch, BLOCK_SIZE, NUM_SLOTS, torch.empty(0))

    assert sorted(group.num_seqs for group in groups) == [1, 2, 2]
