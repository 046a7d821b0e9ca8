import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.block_pool import BlockPool


def test_a_fresh_pool_hands_out_each_block_once() -> None:
    pool = BlockPool(5)

    assert sorted(pool.allocate(2) + pool.allocate(3)) == [0, 1, 2, 3, 4]
    assert (pool.num_free, pool.num_held, pool.num_cached) == (0, 5, 0)


def test_asking_for_more_than_there_is_takes_nothing() -> None:
    pool = BlockPool(3)
    pool.allocate(1)

    with pytest.raises(ValueError, match="3 blocks wanted, 2 available"):
        pool.allocate(3)

    assert pool.num_free == 2


def test_a_pool_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one block, not 0"):
        BlockPool(0)


def test_a_freed_block_is_handed_out_again() -> None:
    pool = BlockPool(1)
    pool.free(pool.allocate(1))

    assert pool.allocate(1) == [0]


def test_freeing_twice_raises_and_changes_nothing() -> None:
    pool = BlockPool(4)
    held, freed = pool.allocate(2)
    pool.free([freed])

    with pytest.raises(ValueError, match=f"block {freed} is not held"):
        pool.free([held, freed])

    assert pool.ref_count(held) == 1
    pool.check()


def test_one_holder_frees_a_block_only_once() -> None:
    pool = BlockPool(4)
    (block,) = pool.allocate(1)
    pool.touch([block])

    with pytest.raises(ValueError, match="freed twice"):
        pool.free([block, block])


def test_a_shared_block_stays_held_until_its_last_holder_frees_it() -> None:
    pool = BlockPool(2)
    table = pool.allocate(1)
    pool.touch(table)

    pool.free(table)
    assert pool.num_held == 1

    pool.free(table)
    assert pool.num_held == 0


def test_a_free_block_cannot_be_shared() -> None:
    pool = BlockPool(2)
    (held,) = pool.allocate(1)

    with pytest.raises(ValueError, match="block 1 is free"):
        pool.touch([held, 1])

    assert pool.ref_count(held) == 1


def test_a_kept_block_is_cached_when_nobody_holds_it_and_can_be_shared_again() -> None:
    pool = BlockPool(2)
    table = pool.allocate(1)
    pool.keep(table[0])
    pool.free(table)

    assert (pool.num_free, pool.num_cached, pool.num_available) == (1, 1, 2)
    assert pool.num_idle(table) == 1

    pool.touch(table)
    assert (pool.num_held, pool.num_cached) == (1, 0)


def test_only_a_held_block_can_be_kept() -> None:
    with pytest.raises(ValueError, match="block 0 is not held"):
        BlockPool(1).keep(0)


def test_free_blocks_go_before_cached_ones() -> None:
    pool = BlockPool(2)
    (kept,) = pool.allocate(1)
    pool.keep(kept)
    pool.free([kept])

    assert pool.allocate(1) != [kept]


def test_the_block_unused_for_longest_is_evicted_first() -> None:
    pool = BlockPool(3)
    a, b, c = pool.allocate(3)
    for block in (a, b, c):
        pool.keep(block)
    for block in (b, c, a):
        pool.free([block])

    assert [pool.allocate(1)[0] for _ in range(3)] == [b, c, a]


def test_the_end_of_a_table_is_evicted_before_its_beginning() -> None:
    pool = BlockPool(3)
    table = pool.allocate(3)
    for block in table:
        pool.keep(block)
    pool.free(table)

    assert [pool.allocate(1)[0] for _ in range(3)] == table[::-1]


def test_using_a_cached_block_makes_it_the_last_to_be_evicted() -> None:
    pool = BlockPool(2)
    a, b = pool.allocate(2)
    for block in (a, b):
        pool.keep(block)
        pool.free([block])

    pool.touch([a])
    pool.free([a])

    assert pool.allocate(1) == [b]


def test_a_discarded_block_is_free_at_once_or_when_it_is_let_go() -> None:
    pool = BlockPool(2)
    cached, held = pool.allocate(2)
    for block in (cached, held):
        pool.keep(block)
    pool.free([cached])

    pool.discard(cached)
    pool.discard(held)
    pool.free([held])

    assert (pool.num_free, pool.num_cached) == (2, 0)


def test_evicted_blocks_are_reported_once() -> None:
    pool = BlockPool(2)
    _held, cached = pool.allocate(2)
    pool.keep(cached)
    pool.free([cached])

    pool.allocate(1)

    assert pool.drain_evicted() == [cached]
    assert pool.drain_evicted() == []


# ── groups ─────────────────────────────────────────────────────────────────────────────────────


def test_a_pool_of_empty_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one block, not 0"):
        BlockPool(8, group_size=0)


def test_a_holder_goes_on_where_its_table_ends() -> None:
    pool = BlockPool(12, group_size=4)
    one, other = pool.allocate(2), pool.allocate(3)

    grown = [*one, *pool.allocate(1, after=one[-1]), *pool.allocate(4, after=one[-1] + 1)]

    assert (one, other) == ([0, 1], [4, 5, 6])
    assert grown == [0, 1, 2, 3, 8, 9, 10]


def test_a_holder_goes_on_into_the_next_group_if_it_is_whole() -> None:
    pool = BlockPool(12, group_size=4)

    assert pool.allocate(9, after=pool.allocate(1)[0]) == list(range(1, 10))


def test_blocks_of_several_groups_are_in_order_whatever_became_free_first() -> None:
    pool = BlockPool(12, group_size=4)
    tables = [pool.allocate(4) for _ in range(3)]
    for index in (0, 2, 1):
        pool.free(tables[index])

    assert pool.allocate(10) == list(range(10))


def cache(pool: BlockPool, *tables: list[int]) -> None:
    for table in tables:
        for block in table:
            pool.keep(block)
        pool.free(table)


def test_the_idle_group_unused_for_longest_is_evicted_as_a_whole() -> None:
    pool = BlockPool(16, group_size=8)
    oldest, newest = pool.allocate(8), pool.allocate(7)
    cache(pool, oldest, newest)

    assert pool.allocate(1) == [0]
    assert sorted(pool.drain_evicted()) == oldest
    assert (pool.num_free, pool.num_cached) == (8, 7)


def test_a_cached_block_that_was_used_again_makes_its_group_the_last_to_be_evicted() -> None:
    pool = BlockPool(8, group_size=4)
    oldest, newest = pool.allocate(4), pool.allocate(4)
    cache(pool, oldest, newest)
    pool.touch(oldest[:1])
    pool.free(oldest[:1])

    assert pool.allocate(1) == [4]
    assert sorted(pool.drain_evicted()) == newest


def test_leftovers_that_nobody_will_go_on_in_are_used_before_anything_is_evicted() -> None:
    pool = BlockPool(16, group_size=8)
    running, ended = pool.allocate(2), pool.allocate(6)
    cache(pool, ended)

    assert pool.allocate(2) == [14, 15]
    assert pool.allocate(2, after=running[-1]) == [2, 3]
    assert pool.drain_evicted() == []
    assert pool.allocate(1) == [4]  # ahead of a running one, since nothing is idle


def test_a_group_that_somebody_holds_a_block_of_is_not_evicted_but_block_by_block() -> None:
    pool = BlockPool(4, group_size=4)
    table = pool.allocate(4)
    for block in table:
        pool.keep(block)
    pool.free(table[1:])

    assert pool.allocate(1) == [3]
    assert pool.drain_evicted() == [3]
    assert (pool.num_held, pool.num_cached) == (2, 2)


def test_leftovers_are_used_when_there_is_nothing_to_evict() -> None:
    pool = BlockPool(7, group_size=4)
    pool.allocate(1), pool.allocate(1)

    assert pool.allocate(5) == [1, 2, 3, 5, 6]


@given(
    st.integers(5, 20),
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), max_size=80),
)
def test_every_block_is_in_exactly_one_place_whatever_is_done(
    num_blocks: int, group_size: int, moves: list[tuple[int, int]]
) -> None:
    pool = BlockPool(num_blocks, group_size)
    tables: list[list[int]] = []
    for move, number in moves:
        table = tables[number % len(tables)] if tables else []
        if move == 0 and number % 4 <= pool.num_available:
            tables.append(pool.allocate(number % 4))
        elif move == 5 and table and number % 4 <= pool.num_available:
            table += pool.allocate(number % 4, after=table[-1])
        elif move == 1 and tables:
            tables.remove(table)
            pool.free(table)
        elif move == 2 and table:
            pool.keep(table[number % len(table)])
        elif move == 3 and tables:
            pool.touch(table)
            tables.append(list(table))
        elif move == 4 and table:
            pool.discard(table[0])
        pool.check()
    assert pool.num_held == len({block for table in tables for block in table})
