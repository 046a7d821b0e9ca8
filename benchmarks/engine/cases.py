"""Steps whose time is known beforehand: what they must read, and what they must compute."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kernels.program import Linear, Logits, PagedAttention, Program
from kernels.ragged_batch import RaggedBatch
from services.scheduler.block_pool import BlockPool

BLOCK_SIZE = 16
CHUNK_BLOCKS = 16  # of a prompt that is computed beside others, per pass
MAX_BLOCKS_LEFT = 64  # of a sequence that was here before


@dataclass(frozen=True, slots=True)
class Case:
    """Sequences as (new tokens, tokens in the cache after the step); each samples one token."""

    name: str
    sequences: tuple[tuple[int, int], ...]
    bar: float  # times the floor, at most

    @property
    def num_blocks(self) -> int:
        return sum(-(-kv_len // BLOCK_SIZE) for _, kv_len in self.sequences)


CASES = (
    *(
        Case(f"decode b{batch} ctx{context}", ((1, context),) * batch, 1.6)
        for batch in (1, 8, 32)
        for context in (256, 1024)
    ),
    Case("mixed 256: 7 decodes + 249", (*(((1, 512),) * 7), (249, 512)), 1.35),
    Case("prefill 512", ((512, 512),), 1.3),
    Case("prefill 2048", ((2048, 2048),), 1.3),
)


def deal_blocks(
    counts: Sequence[int], group_size: int, rng: np.random.Generator
) -> list[list[int]]:
    """Block tables as the scheduler's pool deals them when it is full of what others have left.

    Args:
        counts: `[num_seqs]`, blocks of each table; together they are all of the pool.
        group_size: what the backend wants, `blocks_per_group`.
    """
    pool = BlockPool(sum(counts), group_size)
    others = []
    while pool.num_free:
        wanted = int(rng.integers(1, MAX_BLOCKS_LEFT, endpoint=True))
        others.append(pool.allocate(min(wanted, pool.num_free)))
    for index in rng.permutation(len(others)):
        for block_id in others[index]:
            pool.keep(block_id)
        pool.free(others[index])
    tables: list[list[int]] = [[] for _ in counts]
    while pool.num_available:
        for table, count in zip(tables, counts, strict=True):
            wanted = min(CHUNK_BLOCKS, count - len(table))
            table += pool.allocate(wanted, table[-1] if table else None)
    return tables


def make_batch(
    case: Case, vocab_size: int, blocks_per_group: int = 1, seed: int = 0
) -> RaggedBatch:
    """Random tokens, blocks as a scheduler would deal them to that backend."""
    rng = np.random.default_rng(seed)
    new = np.array([tokens for tokens, _ in case.sequences], np.int32)
    kv_lens = np.array([kv_len for _, kv_len in case.sequences], np.int32)
    counts = -(-kv_lens // BLOCK_SIZE)
    tables = np.zeros((len(new), counts.max()), np.int32)
    for row, table in zip(tables, deal_blocks(counts.tolist(), blocks_per_group, rng), strict=True):
        row[: len(table)] = table
    positions = np.concatenate(
        [np.arange(kv - n, kv, dtype=np.int32) for n, kv in zip(new, kv_lens, strict=True)]
    )
    owners = np.arange(len(new)).repeat(new)
    return RaggedBatch(
        token_ids=rng.integers(0, vocab_size, new.sum(), np.int32),
        positions=positions,
        cu_seqlens_q=np.concatenate([[0], new.cumsum()]).astype(np.int32),
        kv_lens=kv_lens,
        block_tables=tables,
        slot_mapping=tables[owners, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE,
        logits_index=(new.cumsum() - 1).astype(np.int32),
    )


def num_bytes(
    program: Program, case: Case, element_bytes: int, weight_bytes: float | None = None
) -> float:
    """Weights once, and the K and V of every sequence once.

    Args:
        weight_bytes: of a weight as it lies in memory; None: an element.
    """
    matrices = {op.weight for op in program.ops if isinstance(op, Linear | Logits)}
    weights = sum(rows * width for rows, width in (program.weights[m] for m in matrices))
    width = sum(2 * layer.num_kv_heads * layer.head_dim for layer in program.kv_layers)
    kv = element_bytes * width * sum(kv_len for _, kv_len in case.sequences)
    return weights * (weight_bytes or element_bytes) + kv


def flop(program: Program, case: Case) -> float:
    """Two per weight and row; four per query head, dimension and key that a query sees.

    Args:
        program: that gathers what is sampled as early as it can: more need nobody compute.
    """
    rows = {"tokens": sum(new for new, _ in case.sequences), "logits": len(case.sequences)}
    num_pairs = sum(new * kv_len - new * (new - 1) / 2 for new, kv_len in case.sequences)
    total = 0.0
    for op in program.ops:
        match op:
            case Linear() | Logits():
                total += 2 * rows[program.buffers[op.input].rows] * _size(program, op.weight)
            case PagedAttention():
                total += 4 * num_pairs * op.num_heads * op.head_dim
            case _:
                pass
    return total


def _size(program: Program, weight: str) -> int:
    rows, width = program.weights[weight]
    return rows * width
