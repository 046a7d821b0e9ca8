"""The KV blocks of one worker: which are free, which are held, which are worth keeping.

A block is in exactly one of three places:

    free     its contents mean nothing
    held     at least one sequence has it in its block table (`ref_count` > 0)
    cached   nobody holds it, but its contents may be used again; evicted oldest first

Invariant: num_free + num_held + num_cached == num_blocks.
Every method checks its arguments before it changes anything; all are O(1) per block.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence, Set


class BlockPool:
    """Reference-counted block ids 0 .. num_blocks - 1.

    Args:
        num_blocks: KV blocks of the worker, > 0.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"a block pool needs at least one block, not {num_blocks}")
        self.num_blocks = num_blocks
        #: block id -> number of block tables that it is in
        self._ref_counts = [0] * num_blocks
        #: ids of free blocks; taken from the left, returned to the right
        self._free = deque(range(num_blocks))
        #: ids of cached blocks, the one unused for longest first
        self._cached: OrderedDict[int, None] = OrderedDict()
        #: blocks whose contents are kept when nobody holds them any more
        self._kept: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out: free ones, then cached ones by eviction."""
        return len(self._free) + len(self._cached)

    @property
    def num_held(self) -> int:
        return self.num_blocks - self.num_available

    @property
    def kept(self) -> Set[int]:
        """Blocks that are, or will be once nobody holds them, cached."""
        return self._kept

    def ref_count(self, block_id: int) -> int:
        """How many block tables hold the block."""
        return self._ref_counts[block_id]

    def num_idle(self, block_ids: Sequence[int]) -> int:
        """How many of the blocks nobody holds: touching them makes fewer blocks available."""
        ref_counts = self._ref_counts
        return sum(1 for block_id in block_ids if not ref_counts[block_id])

    def allocate(self, num_blocks: int) -> list[int]:
        """Take blocks for one holder, evicting cached ones when no more are free.

        Raises:
            ValueError: fewer than `num_blocks` are available; nothing was taken.
        """
        if num_blocks > self.num_available:
            raise ValueError(f"{num_blocks} blocks wanted, {self.num_available} available")
        block_ids = []
        for _ in range(num_blocks):
            if self._free:
                block_id = self._free.popleft()
            else:
                block_id, _ = self._cached.popitem(last=False)
                self._kept.discard(block_id)
            self._ref_counts[block_id] = 1
            block_ids.append(block_id)
        return block_ids

    def touch(self, block_ids: Sequence[int]) -> None:
        """Add one holder to blocks that are held or cached.

        Raises:
            ValueError: a block is free, so its contents mean nothing; nothing was changed.
        """
        for block_id in block_ids:
            if not self._ref_counts[block_id] and block_id not in self._cached:
                raise ValueError(f"block {block_id} is free: it cannot be shared")
        for block_id in block_ids:
            if not self._ref_counts[block_id]:
                del self._cached[block_id]
            self._ref_counts[block_id] += 1

    def free(self, block_ids: Sequence[int]) -> None:
        """Remove one holder from each of the blocks of a block table, in the table's order.

        The table's end is evicted before its beginning, which more sequences have in common.

        Raises:
            ValueError: a block is not held or is named twice; nothing was changed.
        """
        if len(set(block_ids)) != len(block_ids):
            raise ValueError("a block is freed twice by one holder")
        for block_id in block_ids:
            if not self._ref_counts[block_id]:
                raise ValueError(f"block {block_id} is not held: it cannot be freed")
        for block_id in reversed(block_ids):
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id]:
                continue
            if block_id in self._kept:
                self._cached[block_id] = None
            else:
                self._free.append(block_id)

    def keep(self, block_id: int) -> None:
        """From now on the held block is cached, not free, when its last holder lets go.

        Raises:
            ValueError: the block is not held.
        """
        if not self._ref_counts[block_id]:
            raise ValueError(f"block {block_id} is not held: its contents mean nothing")
        self._kept.add(block_id)

    def discard(self, block_id: int) -> None:
        """The contents are worth nothing after all: a cached block becomes free."""
        self._kept.discard(block_id)
        if block_id in self._cached:
            del self._cached[block_id]
            self._free.append(block_id)

    def check(self) -> None:
        """Raise AssertionError unless every sentence of the module docstring is true."""
        held = {block_id for block_id, count in enumerate(self._ref_counts) if count}
        free, cached = set(self._free), set(self._cached)
        places = len(self._free) + len(held) + len(cached)
        if places != self.num_blocks or len(free | held | cached) != self.num_blocks:
            raise AssertionError(
                f"free {len(self._free)} + held {len(held)} + cached {len(cached)} "
                f"!= {self.num_blocks} blocks"
            )
        if not cached <= self._kept <= held | cached:
            raise AssertionError("a cached block is not kept, or a free block is")
