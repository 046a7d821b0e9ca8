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

Parameters come as numpy arrays on the host; `map` takes them to where the logits are.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

Array = TypeVar("Array")
Other = TypeVar("Other")


@dataclass(frozen=True, slots=True)
class Biases(Generic[Array]):
    """What is added to single logits; one entry per (row, id)."""

    rows: Array  # [n] int64
    token_ids: Array  # [n] int64, < vocab_size
    values: Array  # [n] float32

    def map(self, convert: Callable[[Array], Other]) -> "Biases[Other]":
        """The same in other arrays."""
        return Biases(*(convert(getattr(self, column.name)) for column in fields(self)))


@dataclass(frozen=True, slots=True)
class Penalties(Generic[Array]):
    """Of the rows that are penalised: one entry per (row, id) that occurs, ids once per row."""

    rows: Array  # [n] int64
    token_ids: Array  # [n] int64, < vocab_size
    repetition: Array  # [n] float32, the row's parameter, > 0
    subtract: Array  # [n] float32, presence + frequency * count in the output; 0 if not in it

    def map(self, convert: Callable[[Array], Other]) -> "Penalties[Other]":
        """The same in other arrays."""
        return Penalties(*(convert(getattr(self, column.name)) for column in fields(self)))


@dataclass(frozen=True, slots=True)
class Randomness(Generic[Array]):
    """How rows that are not greedy are drawn; all `[num_rows]`."""

    temperature: Array  # float32, > 0
    top_k: Array  # int64, >= 1; vocab_size = off
    top_p: Array  # float64 in (0, 1]; 1 = off
    min_p: Array  # float32 in [0, 1]; 0 = off
    seeds: Array  # int64, the bits of an unsigned 64-bit number
    positions: Array  # int64, of the drawn token in its sequence

    def map(self, convert: Callable[[Array], Other]) -> "Randomness[Other]":
        """The same in other arrays, or some rows of it."""
        return Randomness(*(convert(getattr(self, column.name)) for column in fields(self)))
