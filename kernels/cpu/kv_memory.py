"""Memory for the KV cache, taken before a step needs it.

The system hands pages out when they are first written, and clears them; in a virtual machine its
host does so, too, which can take longer than computing the tokens that go there. So a worker that
has nothing to do takes some ahead. It does not take all: a cache is as large as it may become, and
who asks little of it should not pay for it.
"""

from collections.abc import Callable
from typing import Final

from kernels.ragged_batch import Int32Array

AHEAD_BYTES: Final = 512 * 2**20  # beyond the highest block written; schedulers use low ones first
PIECE_BYTES: Final = 2 * 2**20  # of one array at a time: a large page, milliseconds at worst


class KvMemory:
    """Which blocks have memory.

    Args:
        populate: takes memory for blocks of one array of the cache: (array, begin, end); False if
            it cannot, and then it is not asked again.
        num_arrays: of the cache.
        num_blocks: of the cache.
        block_size: tokens per block.
        block_bytes: of one block, all arrays together; > 0.
    """

    def __init__(
        self,
        populate: Callable[[int, int, int], bool],
        *,
        num_arrays: int,
        num_blocks: int,
        block_size: int,
        block_bytes: int,
    ) -> None:
        self._populate = populate
        self._num_arrays = num_arrays
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._num_ahead = -(-AHEAD_BYTES // block_bytes)
        self._blocks_per_piece = max(1, PIECE_BYTES * num_arrays // block_bytes)
        self._num_wanted = min(self._num_ahead, num_blocks)
        #: blocks below have memory in all arrays; of the piece behind them, the first arrays have
        self._num_ready = 0
        self._num_arrays_ready = 0

    def written(self, slots: Int32Array) -> None:
        """A step wrote these slots, at least one."""
        if self._num_wanted < self._num_blocks:
            highest = max(slots.tolist()) // self._block_size
            wanted = min(highest + 1 + self._num_ahead, self._num_blocks)
            self._num_wanted = max(self._num_wanted, wanted)

    def take(self) -> bool:
        """Take one piece; returns whether there is more to take."""
        begin = self._num_ready
        if begin >= self._num_wanted:
            return False
        end = min(begin + self._blocks_per_piece, self._num_blocks)
        if not self._populate(self._num_arrays_ready, begin, end):
            self._num_ready = self._num_wanted = self._num_blocks
            return False
        self._num_arrays_ready += 1
        if self._num_arrays_ready == self._num_arrays:
            self._num_arrays_ready, self._num_ready = 0, end
        return self._num_ready < self._num_wanted
