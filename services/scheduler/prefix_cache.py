"""Which KV blocks hold which tokens, so that equal prefixes are computed once.

A full block is named by a digest of its parent's digest and its own token ids, so a digest stands
for the whole prefix up to the block's end. The root digest is made from the tenant: tenants
never see each other's timing. 128 bits of BLAKE2b make a collision a non-event.

Partly filled blocks are never shared, and a hit never covers a whole sequence: at least one token
is left to compute, since something has to produce logits. So no shared block is ever written.
"""

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from services.scheduler.block_pool import BlockPool

DIGEST_BYTES = 16


class HashChain:
    """Digests of the full blocks of one sequence; each block is hashed once.

    Args:
        block_size: tokens per block, > 0.
        salt: sequences share blocks only with others of the same salt.
    """

    __slots__ = ("_block_size", "_root", "digests")

    def __init__(self, block_size: int, salt: str) -> None:
        self._block_size = block_size
        self._root = blake2b(salt.encode(), digest_size=DIGEST_BYTES).digest()
        #: digest of block i of the sequence, for as many full blocks as were asked for
        self.digests: list[bytes] = []

    def extend(self, token_ids: "array[int]", num_tokens: int) -> list[bytes]:
        """Hash up to the last full block within the first `num_tokens` tokens.

        `token_ids` must begin with the tokens of the calls before.
        """
        digests = self.digests
        size = self._block_size
        parent = digests[-1] if digests else self._root
        for start in range(len(digests) * size, num_tokens - size + 1, size):
            block = token_ids[start : start + size].tobytes()
            parent = blake2b(parent + block, digest_size=DIGEST_BYTES).digest()
            digests.append(parent)
        return digests


class PrefixCache:
    """Finds blocks by digest. An entry lives until its block is evicted or proves false.

    Invariant: the blocks with an entry are the blocks that the pool keeps.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._block_of)

    def lookup(self, digests: Sequence[bytes], max_blocks: int) -> list[int]:
        """Blocks of the longest known prefix, at most `max_blocks` of them; not yet touched."""
        block_ids: list[int] = []
        for digest in digests[:max_blocks]:
            block_id = self._block_of.get(digest)
            if block_id is None:
                break
            block_ids.append(block_id)
        return block_ids

    def register(self, block_id: int, digest: bytes) -> bool:
        """Name a held block; False if it or an equal one has an entry already."""
        if digest in self._block_of or block_id in self._digest_of:
            return False
        self._pool.keep(block_id)
        self._block_of[digest] = block_id
        self._digest_of[block_id] = digest
        return True

    def forget(self, block_ids: Iterable[int]) -> None:
        """Remove entries that proved false: the blocks were never filled."""
        for block_id in block_ids:
            self.evict((block_id,))
            self._pool.discard(block_id)

    def evict(self, block_ids: Iterable[int]) -> None:
        """Remove the entries of blocks that the pool has evicted."""
        for block_id in block_ids:
            digest = self._digest_of.pop(block_id, None)
            if digest is not None:
                del self._block_of[digest]

    def check(self) -> None:
        """Raise AssertionError unless the two directions agree and no free block has an entry."""
        if {digest: block for block, digest in self._digest_of.items()} != self._block_of:
            raise AssertionError("digest -> block and block -> digest disagree")
        if self._digest_of.keys() != self._pool.kept:
            raise AssertionError("blocks with an entry are not the blocks that the pool keeps")
