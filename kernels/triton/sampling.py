"""Choose the next token of each row from its logits, each by its own parameters, in one launch.

    logits    [num_rows, vocab_size] float32; biases and penalties are applied in place
    rows      [num_drawn] int64: which; if it is not given, all in order
    out       [num_drawn] int64; -1 where the largest logit is not finite: nothing can be chosen

What is computed stands in `kernels.sampling`; a temperature of 0 takes the largest logit.

One program serves one row and reads it several times, from the second on out of the cache. Nothing
is sorted. With d = (max - logit) / temperature >= 0, whose bits order like integers, every
truncation keeps the ids of `d <= limit`, and min-p says that limit outright. Top-k and top-p ask
the same question with different weights (1, or exp(-d)): which is the largest limit such that the
ids strictly nearer than it weigh less than k, or than top_p of what is left? A search over the bits
of d tries several limits in each pass and ends as soon as they part no more ids, so ids as likely
as the last one kept stay, as the contract wants.

The draw is `kernels.philox`'s race: bit for bit the same words, whose logarithm is taken in
float32 with a relative error of about 3e-7.

Memory bound: vocab_size * 4 bytes per pass; 1 pass for greedy rows, 2 more for a draw, and
about 10 more each for top-k and top-p.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sampling import Biases, Penalties, Randomness

_BLOCK = 4096  # ids in hand at once
_LIMITS = 4  # limits tried in one pass; more need more registers than they save passes
_ENTRIES = 1024  # biases or penalties looked at at once


@triton.jit
def _add_biases(
    line_ptr: tl.tensor,
    row: tl.tensor,
    rows_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    values_ptr: tl.tensor,
    num_entries: tl.tensor,
    ENTRIES: tl.constexpr,
) -> None:
    """An id may come twice in one row, so sums are atomic."""
    for first in range(0, num_entries, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        mask = entry < num_entries
        mask = mask & (tl.load(rows_ptr + entry, mask=mask, other=-1) == row)
        token_id = tl.load(ids_ptr + entry, mask=mask, other=0)
        value = tl.load(values_ptr + entry, mask=mask, other=0.0)
        tl.atomic_add(line_ptr + token_id, value, mask=mask)
    tl.debug_barrier()  # other threads of this program read what this one wrote


@triton.jit
def _add_penalties(
    line_ptr: tl.tensor,
    row: tl.tensor,
    rows_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    repetition_ptr: tl.tensor,
    subtract_ptr: tl.tensor,
    num_entries: tl.tensor,
    ENTRIES: tl.constexpr,
) -> None:
    """An id comes once in a row."""
    for first in range(0, num_entries, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        mask = entry < num_entries
        mask = mask & (tl.load(rows_ptr + entry, mask=mask, other=-1) == row)
        token_id = tl.load(ids_ptr + entry, mask=mask, other=0)
        repetition = tl.load(repetition_ptr + entry, mask=mask, other=1.0)
        subtract = tl.load(subtract_ptr + entry, mask=mask, other=0.0)
        old = tl.load(line_ptr + token_id, mask=mask, other=0.0)
        new = tl.where(old > 0, old / repetition, old * repetition) - subtract
        tl.store(line_ptr + token_id, new, mask=mask)
    tl.debug_barrier()


@triton.jit
def _largest(
    line_ptr: tl.tensor, vocab_size: tl.tensor, BLOCK: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The largest logit and its id, the lowest of equals; NaN if one logit is."""
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    best_id = tl.zeros((BLOCK,), tl.int32)
    num_nan = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, vocab_size, BLOCK):
        token_id = first + tl.arange(0, BLOCK)
        logit = tl.load(line_ptr + token_id, mask=token_id < vocab_size, other=float("-inf"))
        best_id = tl.where(logit > best, token_id, best_id)
        num_nan += (logit != logit).to(tl.int32)
        best = tl.maximum(best, logit)
    largest = tl.max(best, 0)
    lowest_id = tl.min(tl.where(best == largest, best_id, 2147483647), 0)
    return tl.where(tl.sum(num_nan, 0) > 0, float("nan"), largest), lowest_id


@triton.jit
def _distance(
    line_ptr: tl.tensor,
    token_id: tl.tensor,
    vocab_size: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
) -> tl.tensor:
    """How far logits lie below the largest, in units of the temperature; infinite if forbidden."""
    logit = tl.load(line_ptr + token_id, mask=token_id < vocab_size, other=float("-inf"))
    return (largest - logit) / temperature


@triton.jit
def _weigh(
    line_ptr: tl.tensor,
    vocab_size: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    limits: tl.tensor,
    BY_MASS: tl.constexpr,
    BLOCK: tl.constexpr,
    LIMITS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Weight (float64) and number (int32) of the ids strictly nearer than each limit [LIMITS]."""
    mass = tl.zeros((BLOCK, LIMITS), tl.float32)
    count = tl.zeros((BLOCK, LIMITS), tl.int32)
    for first in range(0, vocab_size, BLOCK):
        token_id = first + tl.arange(0, BLOCK)
        d = _distance(line_ptr, token_id, vocab_size, largest, temperature)
        nearer = d.to(tl.int32, bitcast=True)[:, None] < limits[None, :]
        count += nearer.to(tl.int32)
        if BY_MASS:
            mass += tl.where(nearer, tl.exp(-d)[:, None], 0.0)
    count = tl.sum(count, 0)
    weight = tl.sum(mass.to(tl.float64), 0) if BY_MASS else count.to(tl.float64)
    return weight, count


@triton.jit
def _find_limit(
    line_ptr: tl.tensor,
    vocab_size: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    limit: tl.tensor,
    target: tl.tensor,
    BY_MASS: tl.constexpr,
    BLOCK: tl.constexpr,
    LIMITS: tl.constexpr,
) -> tl.tensor:
    """The largest limit, at most `limit`, such that all nearer ids weigh less than `target`.

    With BY_MASS the target is a share of what `limit` keeps. Limits are bits of distances.
    Invariant: what is sought lies in [low, high).
    """
    low = tl.full((), 0, tl.int32)
    high = limit + 1
    ends = tl.full((LIMITS,), 0, tl.int32) + high
    weights, counts = _weigh(
        line_ptr, vocab_size, largest, temperature, ends, BY_MASS, BLOCK, LIMITS
    )
    if BY_MASS:
        target = target * tl.max(weights, 0)
    num_below_low = tl.full((), 0, tl.int32)
    num_below_high = tl.max(counts, 0)
    while (high - low > 1) & (num_below_high - num_below_low > 1):
        step = tl.maximum((high - low) // (LIMITS + 1), 1)
        tried = tl.minimum(low + (1 + tl.arange(0, LIMITS)) * step, high - 1)
        weights, counts = _weigh(
            line_ptr, vocab_size, largest, temperature, tried, BY_MASS, BLOCK, LIMITS
        )
        fits = weights < target
        num_below_low = tl.maximum(num_below_low, tl.max(tl.where(fits, counts, 0), 0))
        num_below_high = tl.minimum(num_below_high, tl.min(tl.where(fits, 2147483647, counts), 0))
        low = tl.maximum(low, tl.max(tl.where(fits, tried, 0), 0))
        high = tl.minimum(high, tl.min(tl.where(fits, 2147483647, tried), 0))
    return high - 1


@triton.jit
def _exponentials(word: tl.tensor) -> tl.tensor:
    """-log((word + 1/2) / 2**32) in float32, of which every bit counts at both ends.

    Near 1 the logarithm of a rounded number is all error, so there it is log1p(-x) of the distance
    x to 1, corrected for the rounding of 1 - x.
    """
    is_small = word < 2147483648
    below = tl.where(is_small, word, 4294967295 - word).to(tl.float32)
    x = (below + 0.5) * 2.3283064365386963e-10  # 2 ** -32
    rest = 1.0 - x
    # 1 - rest is 0 for the smallest x, where -log1p(-x) is x itself.
    rounded = tl.where(rest == 1.0, 1.0, 1.0 - rest)
    near_one = tl.where(rest == 1.0, x, -tl.log(rest) * (x / rounded))
    return tl.where(is_small, -tl.log(x), near_one)


@triton.jit
def _draw(
    line_ptr: tl.tensor,
    vocab_size: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    limit: tl.tensor,
    seed: tl.tensor,
    position: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The id that wins the race among those kept. Four neighbouring ids share a call of Philox."""
    GROUPS: tl.constexpr = BLOCK // 4
    best = tl.full((GROUPS, 4), 0.0, tl.float32)
    best_id = tl.zeros((GROUPS, 4), tl.int32)
    for first in range(0, vocab_size, BLOCK):
        group = first // 4 + tl.arange(0, GROUPS)
        token_id = group[:, None] * 4 + tl.arange(0, 4)[None, :]
        d = _distance(line_ptr, token_id, vocab_size, largest, temperature)
        kept = d.to(tl.int32, bitcast=True) <= limit
        if tl.max(tl.max(kept.to(tl.int32), 1), 0) > 0:
            zero = group * 0
            low = zero + (position & 0xFFFFFFFF).to(tl.uint32).to(tl.int32, bitcast=True)
            high = zero + (position >> 32).to(tl.int32)
            w0, w1, w2, w3 = tl.philox(seed, low, high, group, zero)
            words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (GROUPS, 4))
            score = tl.where(kept, tl.exp(-d) / _exponentials(words), 0.0)
            best_id = tl.where(score > best, token_id, best_id)
            best = tl.maximum(best, score)
    winner = tl.max(tl.max(best, 1), 0)
    ids = tl.where(best == winner, best_id, 2147483647)
    return tl.min(tl.min(ids, 1), 0)


@triton.jit
def _argmax_kernel(
    logits_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    largest_ptr: tl.tensor,
    vocab_size: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One program looks at one row."""
    row = tl.program_id(0)
    largest, token_id = _largest(logits_ptr + row.to(tl.int64) * vocab_size, vocab_size, BLOCK)
    tl.store(ids_ptr + row, token_id.to(tl.int64))
    tl.store(largest_ptr + row, largest)


@triton.jit
def _sample_kernel(
    logits_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    out_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    top_k_ptr: tl.tensor,
    top_p_ptr: tl.tensor,
    min_p_ptr: tl.tensor,
    seeds_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    bias_rows_ptr: tl.tensor,
    bias_ids_ptr: tl.tensor,
    bias_values_ptr: tl.tensor,
    num_biases: tl.tensor,
    penalty_rows_ptr: tl.tensor,
    penalty_ids_ptr: tl.tensor,
    repetition_ptr: tl.tensor,
    subtract_ptr: tl.tensor,
    num_penalties: tl.tensor,
    vocab_size: tl.tensor,
    HAS_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    LIMITS: tl.constexpr,
    ENTRIES: tl.constexpr,
) -> None:
    """One program samples one row; its parameters stand in the entry of the program's number."""
    entry = tl.program_id(0)
    row = entry.to(tl.int64)
    if HAS_ROWS:
        row = tl.load(rows_ptr + entry)
    line_ptr = logits_ptr + row * vocab_size
    if num_biases > 0:
        _add_biases(
            line_ptr, row, bias_rows_ptr, bias_ids_ptr, bias_values_ptr, num_biases, ENTRIES
        )
    # fmt: off
    if num_penalties > 0:
        _add_penalties(
            line_ptr, row, penalty_rows_ptr, penalty_ids_ptr, repetition_ptr, subtract_ptr,
            num_penalties, ENTRIES,
        )
    # fmt: on
    largest, token_id = _largest(line_ptr, vocab_size, BLOCK)
    temperature = tl.load(temperature_ptr + entry)
    is_finite = tl.abs(largest) < float("inf")  # NaN compares false
    if is_finite & (temperature > 0):
        # The bits of the largest finite number: what is infinitely far is never kept.
        limit = tl.full((), 0x7F7FFFFF, tl.int32)
        min_p = tl.load(min_p_ptr + entry)
        if min_p > 0:
            limit = tl.minimum(tl.abs(tl.log(min_p)).to(tl.int32, bitcast=True), limit)
        top_k = tl.load(top_k_ptr + entry)
        # fmt: off
        if top_k < vocab_size:
            limit = _find_limit(
                line_ptr, vocab_size, largest, temperature, limit, top_k.to(tl.float64),
                False, BLOCK, LIMITS,
            )
        top_p = tl.load(top_p_ptr + entry)
        if top_p < 1:
            limit = _find_limit(
                line_ptr, vocab_size, largest, temperature, limit, top_p, True, BLOCK, LIMITS
            )
        seed = tl.load(seeds_ptr + entry)
        position = tl.load(positions_ptr + entry)
        token_id = _draw(
            line_ptr, vocab_size, largest, temperature, limit, seed, position, BLOCK
        )
        # fmt: on
    tl.store(out_ptr + entry, tl.where(is_finite, token_id, -1).to(tl.int64))


def sample(
    logits: Tensor,
    randomness: Randomness[Tensor],
    out: Tensor,
    biases: Biases[Tensor] | None = None,
    penalties: Penalties[Tensor] | None = None,
    rows: Tensor | None = None,
) -> None:
    """Write `out`, and `logits` where there are biases or penalties; see the module docstring.

    Args:
        randomness: one entry per row drawn; with a temperature of 0 the others are not read.
        biases, penalties: in any order of rows, which are those of `logits`.
    """
    vocab_size = logits.shape[1]
    num_drawn = len(logits) if rows is None else len(rows)
    assert logits.is_contiguous()
    assert logits.dtype == torch.float32
    assert out.shape == randomness.temperature.shape == (num_drawn,)
    if num_drawn == 0:
        return
    block, num_warps = _block_and_warps(vocab_size)
    _sample_kernel[(num_drawn,)](
        logits,
        logits if rows is None else rows,
        out,
        randomness.temperature,
        randomness.top_k,
        randomness.top_p,
        randomness.min_p,
        randomness.seeds,
        randomness.positions,
        *_bias_arguments(biases, logits),
        *_penalty_arguments(penalties, logits),
        vocab_size,
        HAS_ROWS=rows is not None,
        BLOCK=block,
        LIMITS=_LIMITS,
        ENTRIES=_ENTRIES,
        num_warps=num_warps,
    )


def argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The id of each row's largest logit, int64, the lowest of equals; and that logit, or NaN."""
    num_rows, vocab_size = logits.shape
    assert logits.is_contiguous()
    ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    largest = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    if num_rows:
        block, num_warps = _block_and_warps(vocab_size)
        _argmax_kernel[(num_rows,)](
            logits, ids, largest, vocab_size, BLOCK=block, num_warps=num_warps
        )
    return ids, largest


def _block_and_warps(vocab_size: int) -> tuple[int, int]:
    block = min(_BLOCK, max(64, int(triton.next_power_of_2(vocab_size))))
    return block, 8 if block == _BLOCK else 4


def _bias_arguments(biases: Biases[Tensor] | None, like: Tensor) -> tuple[Tensor | int, ...]:
    """Pointers that are not followed, and no entries, where there are none."""
    if biases is None:
        return like, like, like, 0
    return biases.rows, biases.token_ids, biases.values, len(biases.rows)


def _penalty_arguments(
    penalties: Penalties[Tensor] | None, like: Tensor
) -> tuple[Tensor | int, ...]:
    if penalties is None:
        return like, like, like, like, 0
    p = penalties
    return p.rows, p.token_ids, p.repetition, p.subtract, len(p.rows)
