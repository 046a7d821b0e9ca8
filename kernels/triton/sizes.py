"""The sizes that steps are padded to, so that a captured graph can replay them."""

from bisect import bisect_left
from dataclasses import dataclass

DECODE_SIZES = (1, 2, 4, *range(8, 257, 8))
# Steps of an eighth to a third of the size: padding stays small, and graphs can be counted.
MIXED_SIZES = (
    *range(16, 129, 16),
    *range(160, 257, 32),
    *range(320, 513, 64),
    *range(640, 1025, 128),
    *range(1280, 2049, 256),
)
_MAX_NUM_SEQS = 512  # of a mixed step


@dataclass(frozen=True, slots=True)
class GraphSize:
    """What a graph is captured for."""

    num_tokens: int
    decode_only: bool  # every sequence brings one token
    is_split: bool  # attention of some tile is split, and merged

    @property
    def max_num_seqs(self) -> int:
        """Sequences among which the tokens may be spread."""
        return self.num_tokens if self.decode_only else min(self.num_tokens, _MAX_NUM_SEQS)


def choose_size(num_tokens: int, num_seqs: int, is_split: bool) -> GraphSize | None:
    """The smallest size that holds a batch; None: it is larger than all, and runs as it is.

    Args:
        num_tokens: >= num_seqs; equal: a batch of decodes.
        num_seqs: >= 1.
    """
    if num_tokens == num_seqs and num_tokens <= DECODE_SIZES[-1]:
        padded = DECODE_SIZES[bisect_left(DECODE_SIZES, num_tokens)]
        return GraphSize(padded, decode_only=True, is_split=is_split)
    if num_tokens > MIXED_SIZES[-1]:
        return None
    padded = MIXED_SIZES[bisect_left(MIXED_SIZES, num_tokens)]
    size = GraphSize(padded, decode_only=False, is_split=is_split)
    return size if num_seqs <= size.max_num_seqs else None


def sizes_up_to(num_tokens: int) -> list[GraphSize]:
    """All sizes that batches of at most so many tokens are padded to, largest first.

    The first graph captured then takes the memory that all others share.
    """
    sizes = [
        GraphSize(size, decode_only, is_split)
        for sizes, decode_only in ((DECODE_SIZES, True), (MIXED_SIZES, False))
        for size in sizes[: bisect_left(sizes, num_tokens) + 1]
        for is_split in (False, True)
    ]
    return sorted(sizes, key=lambda size: -size.num_tokens)
