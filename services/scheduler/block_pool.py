"""The KV blocks of one worker: which are free, which are held, which are worth keeping.

A block is in exactly one of three places:

    free     its contents mean nothing
    held     at least one sequence has it in its block table (`ref_count` > 0)
    cached   nobody holds it, but its contents may be used again

Invariant: num_free + num_held + num_cached == num_blocks.

Blocks whose ids follow each other lie side by side, and where that makes a worker faster it says in
groups of how many it wants them (see `block_groups`). A holder goes on where its table ends. What
it needs beyond that it gets, in this order, from

    whole groups
    leftovers of idle groups, a quarter of a group or more: nobody will go on there
    the idle group unused for longest, whose cached blocks are evicted
    any leftovers, and at last the cached blocks among what others hold, oldest first

So the free blocks that wait while cached ones are evicted are less than a quarter of a group, or
lie in one of which somebody holds a block. In groups of one there are no leftovers: free blocks,
then cached ones.

Every method checks its arguments before it changes anything. All are O(1) per block, but that
`allocate` may look through a group.
"""

from collections import OrderedDict
from collections.abc import Sequence, Set

from services.scheduler.block_groups import BlockGroups


class BlockPool:
    """Reference-counted block ids 0 .. num_blocks - 1.

    Args:
        num_blocks: KV blocks of the worker, > 0.
        group_size: blocks that shall lie side by side in a table, > 0; 1: where does not matter.
    """

    def __init__(self, num_blocks: int, group_size: int = 1) -> None:
        if num_blocks < 1:
            raise ValueError(f"a block pool needs at least one block, not {num_blocks}")
        if group_size < 1:
            raise ValueError(f"a group has at least one block, not {group_size}")
        self.num_blocks = num_blocks
        self.group_size = group_size
        #: block id -> number of block tables that it is in
        self._ref_counts = [0] * num_blocks
        self._num_free = num_blocks
        #: ids of cached blocks, the one unused for longest first
        self._cached: OrderedDict[int, None] = OrderedDict()
        #: blocks whose contents are kept when nobody holds them any more
        self._kept: set[int] = set()
        #: evicted and not yet reported
        self._evicted: list[int] = []
        self._groups = BlockGroups(num_blocks, group_size)

    @property
    def num_free(self) -> int:
        return self._num_free

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out: free ones, and cached ones by eviction."""
        return self._num_free + len(self._cached)

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

    def allocate(self, num_blocks: int, after: int | None = None) -> list[int]:
        """Take blocks for one holder, evicting cached ones as the module docstring says.

        Args:
            after: the last block of the holder's table, if it has one.

        Raises:
            ValueError: fewer than `num_blocks` are available; nothing was taken.
        """
        if num_blocks > self.num_available:
            raise ValueError(f"{num_blocks} blocks wanted, {self.num_available} available")
        taken: list[int] = []
        if after is not None and self.group_size > 1:
            self._go_on(after, num_blocks, taken)
        if len(taken) < num_blocks:
            for group in sorted(self._pick_groups(num_blocks - len(taken))):
                self._take_from(group * self.group_size, num_blocks, taken)
        while len(taken) < num_blocks:
            group = self._pick_leftovers()
            self._take_from(group * self.group_size, num_blocks, taken)
        return taken

    def drain_evicted(self) -> list[int]:
        """Blocks that were evicted since this was last asked, whoever holds them by now."""
        evicted, self._evicted = self._evicted, []
        return evicted

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
                self._count(block_id // self.group_size, more_held=1)
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
                self._count(block_id // self.group_size, more_held=-1)
            else:
                self._count(block_id // self.group_size, more_held=-1, more_free=1)

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
            self._count(block_id // self.group_size, more_free=1)

    def _go_on(self, after: int, num_blocks: int, taken: list[int]) -> None:
        """Take free blocks that follow a block, up to `num_blocks`."""
        begin = after + 1
        while len(taken) < num_blocks and begin < self.num_blocks:
            group, place = divmod(begin, self.group_size)
            if not place and not self._groups.is_whole(group):
                return
            if not self._take_from(begin, num_blocks, taken):
                return
            begin = taken[-1] + 1

    def _pick_groups(self, num_blocks: int) -> list[int]:
        """Idle groups with free blocks, enough for so many as far as there are any."""
        picked: list[int] = []
        for group in self._groups.to_begin_in():
            if num_blocks <= 0:
                return picked
            picked.append(group)
            num_blocks -= self._groups.num_free(group)
        while num_blocks > 0 and (idle := self._groups.longest_idle()) is not None:
            self._evict_from(idle)
            picked.append(idle)
            num_blocks -= self._groups.num_free(idle)
        return picked

    def _pick_leftovers(self) -> int:
        """A group with a free block, when nothing is idle."""
        group = self._groups.with_leftovers()
        if group is not None:
            return group
        oldest = next(iter(self._cached))
        self._evict(oldest)
        return oldest // self.group_size

    def _take_from(self, begin: int, num_blocks: int, taken: list[int]) -> int:
        """Take free blocks from `begin` to its group's end, until `num_blocks` are taken.

        Returns how many it took.
        """
        group, before = begin // self.group_size, len(taken)
        for block_id in range(begin, self._groups.blocks_of(group).stop):
            if len(taken) == num_blocks:
                break
            if not self._ref_counts[block_id] and block_id not in self._cached:
                self._ref_counts[block_id] = 1
                taken.append(block_id)
        count = len(taken) - before
        self._count(group, more_held=count, more_free=-count)
        return count

    def _count(self, group: int, *, more_held: int = 0, more_free: int = 0) -> None:
        self._num_free += more_free
        self._groups.count(group, more_held=more_held, more_free=more_free)

    def _evict(self, block_id: int) -> None:
        del self._cached[block_id]
        self._kept.discard(block_id)
        self._evicted.append(block_id)
        self._count(block_id // self.group_size, more_free=1)

    def _evict_from(self, group: int) -> None:
        for block_id in self._groups.blocks_of(group):
            if block_id in self._cached:
                self._evict(block_id)

    def check(self) -> None:
        """Raise AssertionError unless every sentence of the module docstring is true."""
        held = {block_id for block_id, count in enumerate(self._ref_counts) if count}
        cached = set(self._cached)
        if held & cached or self._num_free + len(held | cached) != self.num_blocks:
            raise AssertionError(
                f"free {self._num_free} + held {len(held)} + cached {len(cached)} "
                f"!= {self.num_blocks} blocks"
            )
        if not cached <= self._kept <= held | cached:
            raise AssertionError("a cached block is not kept, or a free block is")
        self._groups.check(held, cached)
