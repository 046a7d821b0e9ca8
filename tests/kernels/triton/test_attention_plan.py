"""Plans cover every query and key once, within the room that a captured graph has."""

import dataclasses

import numpy as np
import pytest

from kernels.ragged_batch import RaggedBatch
from kernels.triton.attention_plan import AttentionPlan, Tiling, plan_attention

TILING = Tiling(decode_queries=4, chunk_queries=16, keys=32, max_num_splits=24)


def make_batch(shapes: list[tuple[int, int]]) -> RaggedBatch:
    """Sequences of (queries, kv length)."""
    queries = [n for n, _ in shapes]
    empty = np.zeros(sum(queries), np.int32)
    return RaggedBatch(
        token_ids=empty,
        positions=empty,
        cu_seqlens_q=np.cumsum([0, *queries], dtype=np.int32),
        kv_lens=np.array([kv for _, kv in shapes], np.int32),
        block_tables=np.zeros((len(shapes), 7), np.int32),
        slot_mapping=empty,
        logits_index=empty,
    )


def random_shapes(seed: int, max_queries: int, max_kv: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    queries = rng.integers(1, max_queries + 1, rng.integers(1, 40)).tolist()
    return [(n, int(n + rng.integers(0, max_kv))) for n in queries]


def keys_by_row(plan: AttentionPlan, num_tokens: int, longest: int) -> np.ndarray:
    """How often each query's item reads each key."""
    reads = np.zeros((num_tokens, longest), int)
    for row, queries, _, begin, end, *_ in plan.items.tolist():
        reads[row : row + queries, begin:end] += 1
    return reads


@pytest.mark.parametrize("window", [None, 1, 50])
@pytest.mark.parametrize("seed", range(5))
def test_every_query_reads_the_keys_that_it_sees_once(seed: int, window: int | None) -> None:
    shapes = random_shapes(seed, max_queries=70, max_kv=3000)
    batch = make_batch(shapes)

    plan = plan_attention(batch, TILING, window)

    reads = keys_by_row(plan, batch.num_tokens, longest=max(kv for _, kv in shapes))
    assert reads.max() == 1
    row = 0
    for queries, kv_len in shapes:
        for position in range(kv_len - queries, kv_len):
            first = 0 if window is None else max(0, position - window + 1)
            assert reads[row, first : position + 1].all()
            assert not reads[row, kv_len:].any()
            row += 1


@pytest.mark.parametrize(("max_queries", "max_kv"), [(1, 20_000), (70, 5_000), (3, 10)])
@pytest.mark.parametrize("seed", range(5))
def test_plans_fit_the_room_that_sizes_promise(seed: int, max_queries: int, max_kv: int) -> None:
    batch = make_batch(random_shapes(seed, max_queries, max_kv))

    plan = plan_attention(batch, TILING)

    max_num_tiles = TILING.max_num_tiles(batch.num_tokens, batch.num_seqs)
    assert len(plan.items) <= max_num_tiles + TILING.max_num_splits
    assert len(plan.merges) <= TILING.max_num_splits
    used = plan.merges[:, 1] * plan.merges[:, 3]
    assert used.sum() <= TILING.max_num_partial_rows(decode_only=max_queries == 1)


def test_partial_results_of_a_split_tile_lie_split_after_split() -> None:
    plan = plan_attention(make_batch([(1, 8), (3, 1024)]), TILING)

    ((row, queries, first, splits),) = plan.merges.tolist()
    partials = sorted(item[6] for item in plan.items.tolist() if item[6] >= 0)
    assert (row, queries) == (1, 3)
    assert partials == [first + 3 * i for i in range(splits)]


def test_short_contexts_are_not_split() -> None:
    plan = plan_attention(make_batch([(1, 100), (1, 128)]), TILING)

    assert len(plan.items) == 2
    assert len(plan.merges) == 0


def test_items_with_most_keys_come_first() -> None:
    plan = plan_attention(make_batch([(1, 9), (1, 100), (30, 60)]), TILING)

    lengths = (plan.items[:, 4] - plan.items[:, 3]).tolist()
    assert lengths == sorted(lengths, reverse=True)


def test_tables_are_found_by_sequence() -> None:
    batch = dataclasses.replace(make_batch([(1, 9), (1, 90)]))

    plan = plan_attention(batch, TILING)

    assert dict(plan.items[:, [0, 5]].tolist()) == {0: 0, 1: 7}
