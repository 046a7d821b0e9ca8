"""Philox4x32-10: random numbers as a pure function of a key and a counter.

From "Parallel random numbers: as easy as 1, 2, 3" (Salmon et al., SC 2011). There is no state to
keep, so a number belongs to (seed, position of the token in its sequence, token id) and to nothing
else: not to the batch, not to the worker, not to how often the request was preempted or re-sent.

32-bit words are held in int64 tensors, since torch has no arithmetic on unsigned ones; products
wrap modulo 2**64, whose upper half the shift and mask recover.
"""

import torch
from torch import Tensor

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_WORD_BITS = 32

IDS_PER_CALL = 4  # one call makes four words, one each for four neighbouring token ids


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Four random 32-bit words for each counter and key.

    Args:
        counter: int64 [n, 4], words in [0, 2**32).
        key: int64 [n, 2], likewise.

    Returns:
        int64 [n, 4], likewise.
    """
    c0, c1, c2, c3 = counter.unbind(1)
    k0, k1 = key.unbind(1)
    for _ in range(_ROUNDS):
        product_0, product_1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product_1 >> _WORD_BITS) & _LOW) ^ c1 ^ k0,
            product_1 & _LOW,
            ((product_0 >> _WORD_BITS) & _LOW) ^ c3 ^ k1,
            product_0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return torch.stack([c0, c1, c2, c3], dim=1)


def exponentials(seeds: Tensor, positions: Tensor, groups: Tensor) -> Tensor:
    """Four numbers from the exponential distribution of mean 1, float64 [n, 4], all > 0.

    The key is the seed and the counter (position, group), low words first; a word w becomes
    -log((w + 1/2) / 2**32). Group g is for token ids 4 g to 4 g + 3.

    Args:
        seeds: int64 [n], the bits of an unsigned 64-bit seed.
        positions: int64 [n], >= 0.
        groups: int64 [n], >= 0.
    """
    counter = [positions & _LOW, positions >> _WORD_BITS, groups & _LOW, groups >> _WORD_BITS]
    key = [seeds & _LOW, (seeds >> _WORD_BITS) & _LOW]
    words = philox4x32(torch.stack(counter, dim=1), torch.stack(key, dim=1))
    return -torch.log((words.double() + 0.5) / 2**_WORD_BITS)
