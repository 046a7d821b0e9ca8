"""The input of one forward pass: tokens of many sequences, without padding, without phases.

A decode is a sequence with one token in the batch, a prompt chunk one with several; nothing else
tells them apart. Everything lies on the host as int32; what a backend moves to its device, and
when, is its own business.

Example, block size 4. Sequence A has 5 tokens in the cache and brings one; sequence B is new and
brings its first 3 tokens, which are not yet its last:

    token_ids     [a5, b0, b1, b2]        cu_seqlens_q  [0, 1, 4]
    positions     [ 5,  0,  1,  2]        kv_lens       [6, 3]
    block_tables  [[7, 2], [3, 0]]        slot_mapping  [9, 12, 13, 14]     9 = 2 * 4 + 1
    logits_index  [0]
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Int32Array: TypeAlias = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """See the module docstring. All arrays are int32 and C-contiguous.

    Invariants:
        tokens of one sequence are neighbours, in order of position, and are its newest:
        `kv_lens[s]` is 1 + the largest position of s; slots of one batch are distinct.
    """

    token_ids: Int32Array  # [num_tokens]
    positions: Int32Array  # [num_tokens], 0-based within the sequence
    cu_seqlens_q: Int32Array  # [num_seqs + 1], prefix sums of tokens per sequence
    kv_lens: Int32Array  # [num_seqs], tokens in the cache after this pass
    block_tables: Int32Array  # [num_seqs, max_num_blocks], entries behind kv_lens are arbitrary
    slot_mapping: Int32Array  # [num_tokens], block_id * block_size + offset
    logits_index: Int32Array  # [num_logits_rows], rows of which logits are wanted

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_seqs(self) -> int:
        return len(self.kv_lens)
