"""A pass is full while work waits; a prompt alone is cut evenly."""

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.splitfuse import TILE, Partition, SplitFuse, even_chunk

PARTITIONS: tuple[Partition, ...] = ("greedy", "balanced")


def cut(num_tokens: int, room: int) -> list[int]:
    """The chunks of a prompt that has the same room in every pass."""
    chunks = []
    while num_tokens:
        chunks.append(even_chunk(num_tokens, room))
        num_tokens -= chunks[-1]
    return chunks


@pytest.mark.parametrize("partition", PARTITIONS)
def test_all_decodes_run(partition: Partition) -> None:
    assert SplitFuse(partition).num_decodes(7, room=256, num_prompt_tokens=0) == 7


@pytest.mark.parametrize("partition", PARTITIONS)
def test_decodes_alone_never_exceed_the_budget(partition: Partition) -> None:
    assert SplitFuse(partition).num_decodes(9, room=7, num_prompt_tokens=0) == 7


@pytest.mark.parametrize("partition", PARTITIONS)
def test_a_prompt_with_others_behind_it_fills_the_pass(partition: Partition) -> None:
    assert SplitFuse(partition).num_prompt_tokens(900, room=210, others_wait=True) == 210


@pytest.mark.parametrize("partition", PARTITIONS)
def test_a_prompt_that_fits_runs_whole(partition: Partition) -> None:
    assert SplitFuse(partition).num_prompt_tokens(210, room=210, others_wait=False) == 210


def test_greedy_fills_the_pass_with_the_last_prompt_too() -> None:
    assert SplitFuse("greedy").num_prompt_tokens(300, room=250, others_wait=False) == 250


def test_balanced_cuts_the_last_prompt_evenly() -> None:
    # 19 tiles in two passes of at most 15: 9 and then 10, instead of 250 and 50 tokens.
    assert SplitFuse("balanced").num_prompt_tokens(300, room=250, others_wait=False) == 144


def test_the_example_of_the_docstring() -> None:
    assert cut(1500, room=250) == [208, 208, 208, 208, 224, 224, 220]


@pytest.mark.parametrize("room", [1, 7, TILE - 1])
def test_room_for_less_than_a_tile_is_filled(room: int) -> None:
    assert even_chunk(100, room) == room


@given(st.integers(1, 5000), st.integers(TILE, 800))
def test_even_chunks_take_no_more_passes_than_whole_tiles_need(num_tokens: int, room: int) -> None:
    chunks = cut(num_tokens, room)

    assert sum(chunks) == num_tokens
    assert max(chunks) <= room
    assert len(chunks) <= ceil(ceil(num_tokens / TILE) / (room // TILE))


@given(st.integers(1, 5000), st.integers(TILE, 800))
def test_even_chunks_differ_by_at_most_one_tile(num_tokens: int, room: int) -> None:
    chunks = cut(num_tokens, room)

    assert max(chunks) - min(chunks) <= TILE


@given(st.integers(1, 5000), st.integers(TILE, 800))
def test_smaller_even_chunks_come_first_and_only_the_last_is_no_multiple_of_a_tile(
    num_tokens: int, room: int
) -> None:
    *others, last = cut(num_tokens, room)

    assert others == sorted(others)
    assert all(chunk % TILE == 0 for chunk in others)
    assert not others or last > others[-1] - TILE


@given(st.integers(1, 5000), st.integers(1, 800), st.booleans(), st.sampled_from(PARTITIONS))
def test_a_chunk_is_never_empty_nor_more_than_the_room(
    num_tokens: int, room: int, others_wait: bool, partition: Partition
) -> None:
    chunk = SplitFuse(partition).num_prompt_tokens(num_tokens, room, others_wait)

    assert 1 <= chunk <= min(num_tokens, room)
