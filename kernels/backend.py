"""What a backend can do: run one program over ragged batches, with a KV cache of its own layout.

Logits stay with the backend that made them, in an array of its own kind (numpy's on a CPU, a tensor
on a GPU): the worker hands them from one call to the next. All else crosses as numpy on the host.
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar

from kernels.host_array import Float32Array, HostArray, Int64Array
from kernels.ragged_batch import RaggedBatch
from kernels.sampling import Biases, Penalties, Randomness


class AnyLogits(Protocol):
    """An array of any kind."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`[num_rows, vocab_size]`"""
        ...


LogitsT = TypeVar("LogitsT", bound=AnyLogits)


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural logarithms of probabilities, of some rows."""

    own: Float32Array  # [num_rows], of the ids that were asked for
    top_ids: Int64Array  # [num_rows, count], likeliest first
    top: Float32Array  # [num_rows, count], of these


class Sampler(Protocol[LogitsT]):
    """Chooses tokens from logits `[num_rows, vocab_size]`, float32; writes nothing into them."""

    def argmax(self, logits: LogitsT) -> tuple[Int64Array, Float32Array]:
        """The largest logit of each row.

        Returns:
            Its id `[num_rows]`, the lowest of equals; and itself `[num_rows]`, which is NaN if one
            of the row is (then the id may be any).
        """
        ...

    def sample(
        self, logits: LogitsT, rows: Int64Array, randomness: Randomness[HostArray]
    ) -> Int64Array:
        """Steps 4 to 8 of `kernels.sampling` for some of the rows.

        Args:
            logits: as above.
            rows: `[num_drawn]`, which rows; all of them finite, but for single -inf.
            randomness: one entry per entry of `rows`.

        Returns:
            Ids `[num_drawn]`.
        """
        ...

    def edit(
        self,
        logits: LogitsT,
        rows: Int64Array,
        biases: Biases[HostArray] | None,
        penalties: Penalties[HostArray] | None,
    ) -> LogitsT:
        """Steps 1 and 2 of `kernels.sampling`, on a copy of some rows.

        Args:
            logits: as above.
            rows: `[num_edited]`, which rows.
            biases: of rows counted among `rows`, as are those of `penalties`.
        """
        ...

    def logprobs(
        self, logits: LogitsT, rows: Int64Array, token_ids: Int64Array, count: int
    ) -> Logprobs:
        """Log-probabilities, `log_softmax(logits)`, of some rows.

        Args:
            logits: as above.
            rows: `[num_asked]`, which rows; all of them finite, but for single -inf.
            token_ids: `[num_asked]`, one of each of these rows.
            count: how many of the likeliest ids, at most `vocab_size`.
        """
        ...


class Backend(Protocol[LogitsT]):
    """One model on one device. Not thread-safe: one thread calls it, one call at a time."""

    @property
    def name(self) -> str:
        """As in `--backend` and in what workers tell schedulers."""
        ...

    @property
    def sampler(self) -> Sampler[LogitsT]:
        """For the logits of `run`, on the same device; usable as long as the backend lives."""
        ...

    @property
    def blocks_per_group(self) -> int:
        """How many KV blocks of a sequence it reads faster if their ids follow each other, from a
        multiple of as many; 1: where they lie does not matter."""
        ...

    def kv_cache_bytes(self, num_blocks: int, block_size: int) -> int:
        """Device memory that `allocate_kv_cache` would take; linear in `num_blocks`, nearly."""
        ...

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        """Give every layer room for `num_blocks` blocks; what was cached before is gone."""
        ...

    def prepare_memory(self) -> bool:
        """Take some of the memory that later steps will write to, while there is no step to run.

        Returns:
            Whether there is more to take; each call takes a few milliseconds.
        """
        ...

    def run(self, batch: RaggedBatch) -> LogitsT:
        """One forward pass: store K and V of the batch's tokens, return logits.

        Returns:
            float32 `[len(batch.logits_index), vocab_size]` on the device; the caller may write it.
        """
        ...
