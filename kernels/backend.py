"""What a backend can do: run one program over ragged batches, with a KV cache of its own layout."""

from typing import Protocol

from torch import Tensor

from kernels.ragged_batch import RaggedBatch
from kernels.sampling import Randomness


class Sampler(Protocol):
    """Chooses tokens from logits `[num_rows, vocab_size]`, float32; writes nothing into them."""

    def argmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The largest logit of each row.

        Returns:
            Its id, int64 `[num_rows]`, the lowest of equals; and itself, float32 `[num_rows]`,
            which is NaN if one of the row is (then the id may be any).
        """
        ...

    def sample(self, logits: Tensor, rows: Tensor, randomness: Randomness) -> Tensor:
        """Steps 4 to 8 of `kernels.sampling` for some of the rows.

        Args:
            logits: as above.
            rows: int64 `[num_drawn]`, which rows; all of them finite, but for single -inf.
            randomness: one entry per entry of `rows`.

        Returns:
            int64 `[num_drawn]`.
        """
        ...


class Backend(Protocol):
    """One model on one device. Not thread-safe: one thread calls it, one call at a time."""

    @property
    def name(self) -> str:
        """As in `--backend` and in what workers tell schedulers."""
        ...

    @property
    def sampler(self) -> Sampler:
        """For the logits of `run`, on the same device; usable as long as the backend lives."""
        ...

    def kv_cache_bytes(self, num_blocks: int, block_size: int) -> int:
        """Device memory that `allocate_kv_cache` would take; linear in `num_blocks`, nearly."""
        ...

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        """Give every layer room for `num_blocks` blocks; what was cached before is gone."""
        ...

    def run(self, batch: RaggedBatch) -> Tensor:
        """One forward pass: store K and V of the batch's tokens, return logits.

        Returns:
            float32 `[len(batch.logits_index), vocab_size]` on the device; the caller may write it.
        """
        ...
