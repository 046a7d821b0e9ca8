"""What a backend can do: run one program over ragged batches, with a KV cache of its own layout."""

from typing import Protocol

from torch import Tensor

from kernels.ragged_batch import RaggedBatch


class Backend(Protocol):
    """One model on one device. Not thread-safe: one thread calls it, one call at a time."""

    @property
    def name(self) -> str:
        """As in `--backend` and in what workers tell schedulers."""
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
