"""The example of `kernels.ragged_batch`, and its invariants at random."""

import numpy as np

from common.messages import Chunk, SamplingParams
from common.token_ids import pack_ids
from services.worker.ragged_batch import build_batch
from services.worker.sequence_table import IdBuffer, SequenceState


def a_sequence(tokens: list[int], blocks: list[int], computed: int) -> SequenceState:
    return SequenceState(
        0, IdBuffer(pack_ids(tokens)), 1, computed, IdBuffer(pack_ids(blocks)), SamplingParams()
    )


def test_the_worked_example_of_the_contract() -> None:
    a = a_sequence([100, 101, 102, 103, 104, 105], [7, 2], computed=5)
    b = a_sequence([200, 201, 202, 203], [3], computed=0)
    chunks = (Chunk(1, 5, 1, b"", sample=True), Chunk(2, 0, 3, b"", sample=False))

    batch = build_batch(chunks, [a, b], block_size=4)

    assert batch.token_ids.tolist() == [105, 200, 201, 202]
    assert batch.positions.tolist() == [5, 0, 1, 2]
    assert batch.cu_seqlens_q.tolist() == [0, 1, 4]
    assert batch.kv_lens.tolist() == [6, 3]
    assert batch.block_tables.tolist() == [[7, 2], [3, 0]]
    assert batch.slot_mapping.tolist() == [9, 12, 13, 14]
    assert batch.logits_index.tolist() == [0]


def test_every_array_is_int32_and_contiguous() -> None:
    sequences = [a_sequence(list(range(9)), [0, 1, 2], computed) for computed in (0, 3, 8)]
    chunks = [
        Chunk(i, s.num_computed_tokens, 1, b"", sample=i == 2) for i, s in enumerate(sequences)
    ]

    batch = build_batch(chunks, sequences, block_size=4)

    for array in (getattr(batch, name) for name in batch.__slots__):
        assert array.dtype == np.int32
        assert array.flags.c_contiguous
    assert batch.logits_index.tolist() == [2]
    assert (batch.num_tokens, batch.num_seqs) == (3, 3)
