"""Groups of blocks that lie side by side: which have room, and in which order they are used.

A group is in exactly one of five lists, by how many of its blocks are free and how many are held:

    whole       all are free
    roomy       idle, that is, nobody holds one; a quarter or more are free, so it is worth
                beginning there: nobody else will go on
    idle        idle, with fewer free blocks; the rest is cached
    leftovers   somebody holds a block; some are free, ahead of or between those
    full        somebody holds a block; none is free
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator, Set
from itertools import chain

_Groups = OrderedDict[int, None]


class BlockGroups:
    """Groups 0 .. ceil(num_blocks / size) - 1, all of whose blocks are free at first.

    Args:
        num_blocks: in all groups; the last one may be smaller.
        size: blocks of a group, > 0.
    """

    def __init__(self, num_blocks: int, size: int) -> None:
        self.size = size
        num_groups = -(-num_blocks // size)
        #: by group: how many blocks it has, and of these how many are free, and held
        self._sizes = [size] * num_groups
        self._sizes[-1] -= num_groups * size - num_blocks
        self._free_in = list(self._sizes)
        self._held_in = [0] * num_groups
        #: the last is used first, so that memory is written over before more is used
        self._whole: _Groups = OrderedDict.fromkeys(reversed(range(num_groups)))
        self._roomy: _Groups = OrderedDict()
        #: the one unused for longest first
        self._idle: _Groups = OrderedDict()
        self._leftovers: _Groups = OrderedDict()
        self._full: _Groups = OrderedDict()
        #: free blocks of a roomy group: fewer make short pieces
        self._min_room = -(-size // 4)

    def blocks_of(self, group: int) -> range:
        """Ids of its blocks."""
        begin = group * self.size
        return range(begin, begin + self._sizes[group])

    def num_free(self, group: int) -> int:
        """How many of its blocks are free."""
        return self._free_in[group]

    def is_whole(self, group: int) -> bool:
        """Whether all of its blocks are free."""
        return group in self._whole

    def to_begin_in(self) -> Iterator[int]:
        """Idle groups with room, in the order of use; to be read before anything changes."""
        return chain(reversed(self._whole), self._roomy)

    def longest_idle(self) -> int | None:
        """Of those that are cached for the most part the one unused for longest; None: no such."""
        return next(iter(self._idle), None)

    def with_leftovers(self) -> int | None:
        """One with free blocks beside held ones; None: there is none."""
        return next(iter(self._leftovers), None)

    def count(self, group: int, *, more_held: int = 0, more_free: int = 0) -> None:
        """Note what became of a group's blocks, and list it where it belongs."""
        before = self._where(group)
        self._free_in[group] += more_free
        self._held_in[group] += more_held
        after = self._where(group)
        if after is not before:
            del before[group]
            after[group] = None

    def _where(self, group: int) -> _Groups:
        num_free = self._free_in[group]
        if num_free == self._sizes[group]:
            return self._whole
        if self._held_in[group]:
            return self._leftovers if num_free else self._full
        return self._roomy if num_free >= self._min_room else self._idle

    def check(self, held: Set[int], cached: Set[int]) -> None:
        """Raise AssertionError unless counts and lists are those of these blocks."""
        held_in = Counter(block_id // self.size for block_id in held)
        taken_in = held_in + Counter(block_id // self.size for block_id in cached)
        groups = range(len(self._sizes))
        if self._held_in != [held_in[group] for group in groups]:
            raise AssertionError("held blocks are counted wrongly in a group")
        if self._free_in != [self._sizes[group] - taken_in[group] for group in groups]:
            raise AssertionError("free blocks are counted wrongly in a group")
        lists = (self._whole, self._roomy, self._idle, self._leftovers, self._full)
        if sum(map(len, lists)) != len(groups) or not all(
            self._where(group) is listed for listed in lists for group in listed
        ):
            raise AssertionError("a group is listed twice, or where it does not belong")
