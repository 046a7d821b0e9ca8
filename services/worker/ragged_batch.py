"""From a plan's chunks to the arrays that a backend runs on."""

from collections.abc import Sequence
from itertools import accumulate
from operator import add

import numpy as np

from common.messages import Chunk
from kernels.ragged_batch import Int32Array, RaggedBatch
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
    begins = [chunk.num_computed_tokens for chunk in chunks]
    counts = [chunk.num_tokens for chunk in chunks]
    ends = list(map(add, begins, counts))
    cu_seqlens_q = np.array([0, *accumulate(counts)], np.int32)
    owners = np.arange(len(chunks)).repeat(counts)  # of each token: which sequence
    positions = np.concatenate(list(map(_range, begins, ends)))
    block_tables = _stack([sequence.block_ids.view for sequence in sequences])
    blocks = block_tables[owners, positions // block_size]
    samplers = [index for index, chunk in enumerate(chunks) if chunk.sample]
    return RaggedBatch(
        token_ids=np.concatenate(
            [
                sequence.token_ids.view[begin:end]
                for sequence, begin, end in zip(sequences, begins, ends, strict=True)
            ]
        ),
        positions=positions,
        cu_seqlens_q=cu_seqlens_q,
        kv_lens=np.array(ends, np.int32),
        block_tables=block_tables,
        slot_mapping=blocks * block_size + positions % block_size,
        logits_index=cu_seqlens_q[1:][samplers] - 1,
    )


def _range(begin: int, end: int) -> Int32Array:
    return np.arange(begin, end, dtype=np.int32)


def _stack(tables: list[Int32Array]) -> Int32Array:
    """Block tables as one matrix, padded with block 0 (which is then not read)."""
    matrix = np.zeros((len(tables), max(map(len, tables))), np.int32)
    for row, table in zip(matrix, tables, strict=True):
        row[: len(table)] = table
    return matrix
