from array import array
from collections.abc import Iterable

import pytest

from services.scheduler.block_pool import BlockPool
from services.scheduler.prefix_cache import DIGEST_BYTES, HashChain, PrefixCache

SIZE = 4


def digests(tokens: Iterable[int], salt: str = "") -> list[bytes]:
    ids = array("i", tokens)
    return HashChain(SIZE, salt).extend(ids, len(ids))


def test_only_full_blocks_have_a_digest() -> None:
    assert [len(digests(range(n))) for n in (0, 3, 4, 7, 8, 9)] == [0, 0, 1, 1, 2, 2]
    assert all(len(digest) == DIGEST_BYTES for digest in digests(range(9)))


def test_a_digest_stands_for_the_whole_prefix() -> None:
    one, other = digests([1, 2, 3, 4, 9, 9, 9, 9]), digests([5, 2, 3, 4, 9, 9, 9, 9])

    assert one[1] != other[1]


def test_equal_prefixes_have_equal_digests() -> None:
    assert digests(range(11))[:2] == digests([*range(8), 99, 99, 99])[:2]


def test_tenants_never_share() -> None:
    assert digests(range(8), salt="a") != digests(range(8), salt="b")


def test_a_chain_grown_bit_by_bit_equals_one_made_at_once() -> None:
    ids = array("i", range(23))
    chain = HashChain(SIZE, "t")
    for num_tokens in range(24):
        chain.extend(ids[:num_tokens], num_tokens)

    assert chain.digests == digests(range(23), salt="t")


def test_a_chain_hashes_no_further_than_it_is_told() -> None:
    assert len(HashChain(SIZE, "").extend(array("i", range(100)), 11)) == 2


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(6)


@pytest.fixture
def cache(pool: BlockPool) -> PrefixCache:
    return PrefixCache(pool)


def fill(pool: BlockPool, cache: PrefixCache, names: list[bytes]) -> list[int]:
    table = pool.allocate(len(names))
    cache.evict(pool.drain_evicted())
    for block, name in zip(table, names, strict=True):
        cache.register(block, name)
    return table


def test_lookup_finds_the_longest_prefix(pool: BlockPool, cache: PrefixCache) -> None:
    table = fill(pool, cache, digests(range(12)))

    assert cache.lookup(digests([*range(8), 0, 0, 0, 0]), max_blocks=9) == table[:2]
    assert cache.lookup(digests([0, 0, 0, 0]), max_blocks=9) == []


def test_lookup_gives_no_more_blocks_than_asked_for(pool: BlockPool, cache: PrefixCache) -> None:
    table = fill(pool, cache, digests(range(12)))

    assert cache.lookup(digests(range(12)), max_blocks=1) == table[:1]


def test_blocks_are_found_after_nobody_holds_them(pool: BlockPool, cache: PrefixCache) -> None:
    table = fill(pool, cache, digests(range(8)))
    pool.free(table)

    assert cache.lookup(digests(range(8)), max_blocks=2) == table
    cache.check()


def test_an_evicted_block_is_not_found(pool: BlockPool, cache: PrefixCache) -> None:
    pool.free(fill(pool, cache, digests(range(8))))

    pool.allocate(6)
    cache.evict(pool.drain_evicted())

    assert cache.lookup(digests(range(8)), max_blocks=2) == []
    cache.check()


def test_a_second_block_with_equal_contents_gets_no_name(
    pool: BlockPool, cache: PrefixCache
) -> None:
    (first,) = fill(pool, cache, digests(range(4)))
    (second,) = pool.allocate(1)

    assert not cache.register(second, digests(range(4))[0])
    pool.free([second])

    assert pool.num_free == 5
    assert cache.lookup(digests(range(4)), max_blocks=1) == [first]


def test_a_false_entry_is_forgotten_held_or_not(pool: BlockPool, cache: PrefixCache) -> None:
    table = fill(pool, cache, digests(range(8)))
    pool.free(table[1:])

    cache.forget(table)

    assert len(cache) == 0
    assert (pool.num_free, pool.num_held) == (5, 1)
    cache.check()
