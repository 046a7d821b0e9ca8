"""From a plan's chunks to the arrays that a backend runs on."""

from collections.abc import Sequence

import numpy as np

from common.messages import Chunk
from kernels.ragged_batch import RaggedBatch
from services.worker.sequence_table import SequenceState


def build_batch(
    chunks: Sequence[Chunk], sequences: Sequence[SequenceState], block_size: int
) -> RaggedBatch:
    """Lay the chunks of one step out behind each other.

    Args:
        chunks: at least one, each checked by `SequenceTable.apply`.
        sequences: the sequence of each chunk, before the step.

    Returns:
        Sequences in the order of the chunks; see `kernels.ragged_batch` for an example.
    """
    begins = np.array([chunk.num_computed_tokens for chunk in chunks], np.int32)
    counts = np.array([chunk.num_tokens for chunk in chunks], np.int32)
    cu_seqlens_q = np.concatenate([[0], counts.cumsum()]).astype(np.int32)
    kv_lens = begins + counts
    owners = np.arange(len(chunks)).repeat(counts)  # of each token: which sequence
    positions = np.arange(cu_seqlens_q[-1], dtype=np.int32) + (begins - cu_seqlens_q[:-1])[owners]
    block_tables = _stack([sequence.block_ids.view for sequence in sequences])
    slots = block_tables[owners, positions // block_size] * block_size + positions % block_size
    ends = kv_lens.tolist()
    return RaggedBatch(
        token_ids=np.concatenate(
            [
                sequence.token_ids.view[chunk.num_computed_tokens : end]
                for chunk, sequence, end in zip(chunks, sequences, ends, strict=True)
            ]
        ),
        positions=positions,
        cu_seqlens_q=cu_seqlens_q,
        kv_lens=kv_lens,
        block_tables=block_tables,
        slot_mapping=slots,
        logits_index=(cu_seqlens_q[1:] - 1)[[chunk.sample for chunk in chunks]],
    )


def _stack(tables: list[np.ndarray]) -> np.ndarray:
    """Block tables as one matrix, padded with block 0 (which is then not read)."""
    matrix = np.zeros((len(tables), max(map(len, tables))), np.int32)
    for row, table in zip(matrix, tables, strict=True):
        row[: len(table)] = table
    return matrix
