"""Choose the next token of each row from its logits, every row by its own parameters.

    logits  [num_rows, vocab_size] float32

In this order, as vLLM does it:
 1. `add_biases`       logits[row, id] += bias; a bias of -inf forbids the token
 2. `add_penalties`    of ids in the prompt or output: l / r if l > 0 else l * r  (repetition);
                       of ids in the output: l -= presence + frequency * count
 3. temperature 0      the largest logit, the lowest id of equals; nothing below applies
 4. temperature t      z = (l - max l) / t, p = softmax(z)
 5. min_p              only ids with p >= min_p * max p stay
 6. top_k              only ids with p >= the k-th largest p stay
 7. top_p              p is normalised again; of ids in order of falling p, those before which the
                       sum is < top_p stay, with all that are as likely as the last of these
 8. `draw`             the id with the largest p / e, where e is exponential noise that belongs to
                       (seed, position, id): each id wins with probability p

Each row is computed from itself alone, so what is drawn does not depend on the batch. Its logits
may differ in their last bits from batch to batch. A race of ids with noise of their own (the
Gumbel-max trick) hides that well: two ids must come equally close to change places. Cutting the
running sum of p at one uniform number would not: rounding moves every border between ids a little.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.philox import IDS_PER_CALL, exponentials

# Top-p sorts only so many of the likeliest ids first; only rows whose sum stays below top_p within
# them are sorted whole. It changes the time, never the result.
_LIKELIEST = 1024
# Rows drawn at once: bounds the copies of the logits to rows * vocab_size * 4 bytes each.
_ROWS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Biases:
    """What is added to single logits; one entry per (row, id)."""

    rows: Tensor  # [n] int64
    token_ids: Tensor  # [n] int64, < vocab_size
    values: Tensor  # [n] float32


@dataclass(frozen=True, slots=True)
class Penalties:
    """Of the rows that are penalised: one entry per (row, id) that occurs, ids once per row."""

    rows: Tensor  # [n] int64
    token_ids: Tensor  # [n] int64, < vocab_size
    repetition: Tensor  # [n] float32, the row's parameter, > 0
    subtract: Tensor  # [n] float32, presence + frequency * count in the output; 0 if not in it


@dataclass(frozen=True, slots=True)
class Randomness:
    """How rows that are not greedy are drawn; all `[num_rows]`."""

    temperature: Tensor  # float32, > 0
    top_k: Tensor  # int64, >= 1; vocab_size = off
    top_p: Tensor  # float64 in (0, 1]; 1 = off
    min_p: Tensor  # float32 in [0, 1]; 0 = off
    seeds: Tensor  # int64, the bits of an unsigned 64-bit number
    positions: Tensor  # int64, of the drawn token in its sequence

    def rows(self, rows: slice) -> "Randomness":
        """The same for some of the rows."""
        return Randomness(
            self.temperature[rows],
            self.top_k[rows],
            self.top_p[rows],
            self.min_p[rows],
            self.seeds[rows],
            self.positions[rows],
        )


def add_biases_reference(logits: Tensor, biases: Biases) -> None:
    """Step 1, in place."""
    logits.index_put_((biases.rows, biases.token_ids), biases.values, accumulate=True)


def add_penalties_reference(logits: Tensor, penalties: Penalties) -> None:
    """Step 2, in place."""
    where = (penalties.rows, penalties.token_ids)
    old = logits[where]
    scaled = torch.where(old > 0, old / penalties.repetition, old * penalties.repetition)
    logits.index_put_(where, scaled - penalties.subtract)


class ReferenceSampler:
    """A `kernels.backend.Sampler` in plain torch, on any device."""

    def argmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        largest, token_ids = logits.max(dim=-1)
        return token_ids, largest

    def sample(self, logits: Tensor, rows: Tensor, randomness: Randomness) -> Tensor:
        return sample_reference(logits.index_select(0, rows), randomness)


def sample_reference(logits: Tensor, randomness: Randomness) -> Tensor:
    """Steps 4 to 8: one id per row, `[num_rows]` int64."""
    drawn = [
        _sample_rows(logits[begin : begin + _ROWS_AT_ONCE], randomness.rows(rows))
        for begin in range(0, len(logits), _ROWS_AT_ONCE)
        for rows in [slice(begin, begin + _ROWS_AT_ONCE)]
    ]
    return torch.cat(drawn)


def _sample_rows(logits: Tensor, randomness: Randomness) -> Tensor:
    z = logits - logits.amax(dim=-1, keepdim=True)
    z /= randomness.temperature[:, None]
    _mask_min_p(z, randomness.min_p)
    _mask_top_k(z, randomness.top_k)
    p = torch.softmax(z, dim=-1)
    _mask_top_p(p, randomness.top_p)
    return draw_reference(p, randomness.seeds, randomness.positions)


def _mask_min_p(z: Tensor, min_p: Tensor) -> None:
    if bool((min_p > 0).any()):
        z.masked_fill_(z < min_p.log()[:, None], float("-inf"))


def _mask_top_k(z: Tensor, top_k: Tensor) -> None:
    rows = (top_k < z.shape[1]).nonzero().flatten()
    if not len(rows):
        return
    limits = top_k[rows, None]
    largest = z[rows].topk(int(limits.max()), dim=-1).values
    z[rows] = z[rows].masked_fill(z[rows] < largest.gather(1, limits - 1), float("-inf"))


def _mask_top_p(p: Tensor, top_p: Tensor) -> None:
    rows = (top_p < 1).nonzero().flatten()
    count = min(_LIKELIEST, p.shape[1])
    while len(rows):
        likeliest = p[rows].topk(count, dim=-1).values
        before = likeliest.double().cumsum(dim=-1) - likeliest
        kept = (before < top_p[rows, None]).sum(dim=-1, keepdim=True)
        found = (kept[:, 0] < count) | (count == p.shape[1])
        done = rows[found]
        threshold = likeliest.gather(1, kept - 1)[found]
        p[done] = p[done].masked_fill(p[done] < threshold, 0)
        rows, count = rows[~found], p.shape[1]


def draw_reference(p: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """Step 8: `p` is not negative and need not sum to 1.

    Noise is made only for groups of ids of which one is possible.
    """
    padded = F.pad(p, (0, -p.shape[1] % IDS_PER_CALL))
    race = padded.view(len(p), -1, IDS_PER_CALL)  # [num_rows, num_groups, IDS_PER_CALL]
    rows, groups = (race > 0).any(dim=-1).nonzero(as_tuple=True)
    noise = exponentials(seeds[rows], positions[rows], groups)
    scores = torch.zeros_like(race, dtype=torch.float64)
    scores[rows, groups] = race[rows, groups] / noise
    return scores.flatten(1).argmax(dim=-1)
