"""What a batch must hold to before its indices become addresses on the device."""

import numpy as np

from kernels.ragged_batch import RaggedBatch


class BadBatch(ValueError):
    """An index of the batch is out of range; nothing was computed. The text says which."""


def check_batch(batch: RaggedBatch, num_blocks: int, block_size: int) -> None:
    """Check everything that the device would follow; ids and positions it bounds itself.

    Raises:
        BadBatch: see the text.
    """
    counts = np.diff(batch.cu_seqlens_q)
    _check(
        batch.num_seqs > 0 and batch.cu_seqlens_q[0] == 0 and (counts > 0).all(),
        "every sequence brings at least one token",
    )
    _check(
        len(counts) == len(batch.kv_lens) == len(batch.block_tables)
        and batch.cu_seqlens_q[-1]
        == batch.num_tokens
        == len(batch.positions)
        == len(batch.slot_mapping),
        f"arrays of {batch.num_tokens} tokens and {batch.num_seqs} sequences do not add up",
    )
    _check((batch.kv_lens >= counts).all(), "kv_lens do not count the tokens of this batch")
    num_entries = -(-batch.kv_lens // block_size)
    width = batch.block_tables.shape[1]
    _check(num_entries.max() <= width, f"kv_lens reach behind block tables of {width} blocks")
    used = batch.block_tables[np.arange(width) < num_entries[:, None]]
    _check_range("block", used, num_blocks)
    _check_range("slot", batch.slot_mapping, num_blocks * block_size)
    _check_range("logits_index", batch.logits_index, batch.num_tokens)


def _check_range(what: str, values: np.ndarray, end: int) -> None:
    if len(values) and (values.min() < 0 or values.max() >= end):
        bad = values[(values < 0) | (values >= end)][0]
        raise BadBatch(f"{what} {bad} is outside 0..{end - 1}")


def _check(holds: bool | np.bool_, complaint: str) -> None:
    if not holds:
        raise BadBatch(complaint)
