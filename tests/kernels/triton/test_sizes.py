"""Sizes hold what they are chosen for, and never much more."""

import pytest

from kernels.triton.sizes import MIXED_SIZES, GraphSize, choose_size, sizes_up_to


@pytest.mark.parametrize(
    ("num_tokens", "num_seqs", "expected"),
    [
        (1, 1, GraphSize(1, decode_only=True, is_split=False)),
        (3, 3, GraphSize(4, decode_only=True, is_split=False)),
        (9, 9, GraphSize(16, decode_only=True, is_split=False)),
        (256, 256, GraphSize(256, decode_only=True, is_split=False)),
        (257, 257, GraphSize(320, decode_only=False, is_split=False)),
        (2, 1, GraphSize(16, decode_only=False, is_split=False)),
        (2048, 3, GraphSize(2048, decode_only=False, is_split=False)),
        (2049, 3, None),
        (600, 599, None),
    ],
)
def test_the_smallest_size_that_holds_the_batch_is_chosen(
    num_tokens: int, num_seqs: int, expected: GraphSize | None
) -> None:
    assert choose_size(num_tokens, num_seqs, is_split=False) == expected


def test_splits_have_graphs_of_their_own() -> None:
    assert choose_size(1, 1, is_split=True) == GraphSize(1, decode_only=True, is_split=True)


@pytest.mark.parametrize("decode_only", [False, True])
def test_large_batches_are_padded_by_a_third_at_most(decode_only: bool) -> None:
    for num_tokens in range(16, MIXED_SIZES[-1] + 1):
        size = choose_size(num_tokens, num_tokens if decode_only else 2, is_split=False)
        if size is not None and num_tokens > 48:
            assert num_tokens <= size.num_tokens <= num_tokens * 4 / 3


def test_warm_up_begins_with_the_largest_and_covers_every_batch() -> None:
    sizes = sizes_up_to(100)

    assert sizes[0].num_tokens == max(size.num_tokens for size in sizes)
    for num_tokens in range(1, 101):
        for num_seqs in {1, num_tokens}:
            for is_split in (False, True):
                assert choose_size(num_tokens, num_seqs, is_split) in sizes
