"""Whole programs in C equal the reference, and what a batch must not change, it does not."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.backend import Backend
from kernels.cpu.backend import CpuBackend, CpuBackendError
from kernels.cpu.library import CpuLibrary
from kernels.program import Program
from kernels.ragged_batch import RaggedBatch
from kernels.reference import ReferenceBackend
from tests.support.arrays import run, to_arrays
from tests.support.programs import VOCAB, Cache, Heads, every_op, random_weights

# Of float32 logits whose standard deviation is about 1.
TOLERANCE = 2e-4
DTYPES = (torch.float32, torch.bfloat16)
# Sequences and their new tokens, step by step: prompts whole and in chunks, decodes among them.
STEPS = (
    [(1, 7), (2, 1), (3, 70)],
    [(1, 1), (2, 40), (3, 1), (4, 13)],
    [(4, 1), (3, 1), (2, 1), (1, 1), (5, 3)],
    [(5, 30), (1, 1)],
)


def make(
    program: Program, library: CpuLibrary, dtype: torch.dtype, num_threads: int = 2
) -> CpuBackend:
    weights = to_arrays(random_weights(program, dtype))
    return CpuBackend(program, weights, weights["embed"].dtype, library, num_threads)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("block_size", [16, 5])
def test_every_op_computes_what_the_reference_does(
    library: CpuLibrary, num_threads: int, block_size: int
) -> None:
    program = every_op()
    ours = make(program, library, torch.float32, num_threads)
    reference = ReferenceBackend(program, random_weights(program, torch.float32))

    errors = [abs(ours - theirs) for ours, theirs in side_by_side(block_size, ours, reference)]

    assert torch.cat(errors).max() < TOLERANCE


def test_bfloat16_is_nearer_to_float32_than_the_reference_in_bfloat16(library: CpuLibrary) -> None:
    """Sums stay in float32 where the reference rounds after each op."""
    program = every_op()
    rounded = {n: w.float() for n, w in random_weights(program, torch.bfloat16).items()}
    exact = ReferenceBackend(program, rounded)
    ours = make(program, library, torch.bfloat16)
    theirs = ReferenceBackend(program, random_weights(program, torch.bfloat16))

    both = list(side_by_side(16, exact, ours, theirs))

    our_error = torch.cat([abs(mine - truth) for truth, mine, _ in both]).mean()
    their_error = torch.cat([abs(other - truth) for truth, _, other in both]).mean()
    assert our_error < their_error


@pytest.mark.parametrize(
    "sampled", [(), (6,), (9, 3, 3, 0), tuple(range(10)) * 3], ids=lambda rows: f"{len(rows)} rows"
)
def test_which_rows_are_sampled_changes_none(library: CpuLibrary, sampled: tuple[int, ...]) -> None:
    batch = Cache(16, num_blocks=16).batch([(1, 7), (2, 3)], sample_all=True)
    of_all = make(every_op(), library, torch.bfloat16)
    of_some = make(every_op(), library, torch.bfloat16)
    of_all.allocate_kv_cache(16, 16)
    of_some.allocate_kv_cache(16, 16)

    expected = of_all.run(batch)[list(sampled)]
    index = np.array(sampled, np.int32)

    assert np.array_equal(of_some.run(dataclasses.replace(batch, logits_index=index)), expected)


@pytest.mark.parametrize(
    "heads",
    [
        Heads(num_heads=9, num_kv_heads=3, head_dim=64, rotary_dim=64),
        Heads(num_heads=4, num_kv_heads=1, head_dim=80, rotary_dim=32),
        Heads(num_heads=2, num_kv_heads=2, head_dim=96, rotary_dim=96),
        Heads(num_heads=8, num_kv_heads=2, head_dim=128, rotary_dim=128, soft_cap=5.0),
        Heads(num_heads=1, num_kv_heads=1, head_dim=256, rotary_dim=0, sliding_window=9),
        Heads(num_heads=3, num_kv_heads=1, head_dim=7, rotary_dim=6, sliding_window=1),
    ],
    ids=lambda heads: f"{heads.num_heads}x{heads.head_dim}",
)
def test_heads_of_any_shape(library: CpuLibrary, heads: Heads) -> None:
    program = every_op(heads)
    ours = make(program, library, torch.float32)
    reference = ReferenceBackend(program, random_weights(program, torch.float32))

    errors = [abs(ours - theirs) for ours, theirs in side_by_side(16, ours, reference)]

    assert torch.cat(errors).max() < TOLERANCE


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_has_the_same_logits_to_the_last_bit_however_it_is_batched(
    library: CpuLibrary, dtype: torch.dtype
) -> None:
    program = every_op()

    def logits_of_first(steps: Sequence[Sequence[tuple[int, int]]], num_threads: int) -> np.ndarray:
        """Of all tokens of sequence 1, whose tokens are the same in every run."""
        backend = make(program, library, dtype, num_threads)
        backend.allocate_kv_cache(64, 16)
        others = Cache(16, num_blocks=64, seed=num_threads)
        tokens = np.random.default_rng(7).integers(0, VOCAB, 100).astype(np.int32)
        rows = []
        for work in steps:
            batch = others.batch(work, sample_all=True)
            sequences = [sequence for sequence, _ in work]
            place = sequences.index(1)
            own = slice(*batch.cu_seqlens_q[place : place + 2])
            batch.token_ids[own] = tokens[batch.positions[own]]
            rows.append(backend.run(batch)[own].copy())
        return np.concatenate(rows)

    at_once = logits_of_first([[(1, 100)]], num_threads=1)
    in_chunks = logits_of_first([[(2, 17), (1, 41)], [(1, 59), (2, 1), (3, 30)]], num_threads=2)
    by_token = logits_of_first([[(1, 1), (2, 1)]] * 100, num_threads=3)

    assert np.array_equal(at_once, in_chunks)
    assert np.array_equal(at_once, by_token)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("token_ids", VOCAB, r"token 0: id 83 is outside the vocabulary of 83"),
        ("token_ids", -1, r"token 0: id -1 is outside"),
        ("positions", 300, r"token 0: position 300 is outside the table of 300"),
        ("positions", -1, r"position -1"),
        ("slot_mapping", 64 * 16, r"slot 1024 is outside the cache of 1024"),
        ("slot_mapping", -5, r"slot -5"),
        ("block_tables", 64, r"sequence 0: block 64 is outside 0..63"),
        ("block_tables", -1, r"block -1"),
        ("kv_lens", 0, r"sequence 0: 0 tokens in the cache, 7 of this batch"),
        ("kv_lens", 1000, r"sequence 0: 1000 tokens in the cache"),
        ("cu_seqlens_q", 1, r"do not add up"),
        ("logits_index", 78, r"logits row 0: token 78 of 78"),
        ("logits_index", -1, r"logits row 0: token -1 of 78"),
    ],
)
def test_a_batch_that_points_outside_is_refused_and_changes_nothing(
    name: str, value: int, complaint: str, library: CpuLibrary
) -> None:
    program = every_op()
    backend = make(program, library, torch.float32)
    backend.allocate_kv_cache(64, 16)
    batch = Cache(16, num_blocks=64).batch([(1, 7), (2, 1), (3, 70)])
    array = getattr(batch, name).copy()
    array.flat[0] = value

    with pytest.raises(CpuBackendError, match=complaint):
        backend.run(dataclasses.replace(batch, **{name: array}))

    assert np.isfinite(backend.run(batch)).all()


def test_other_dtypes_are_refused(library: CpuLibrary) -> None:
    program = every_op()

    with pytest.raises(CpuBackendError, match=r"float32 and bfloat16, not float16"):
        make(program, library, torch.float16)


def test_the_kv_cache_takes_what_it_says(library: CpuLibrary) -> None:
    backend = make(every_op(Heads(head_dim=64, rotary_dim=64)), library, torch.bfloat16)

    one, nine = (backend.kv_cache_bytes(n, 16) for n in (1, 9))

    assert one == 2 * 2 * 16 * 2 * 64 * 2  # layers, K and V, tokens, heads, dimensions, bytes
    assert nine == 9 * one


def test_a_batch_may_sample_nothing(library: CpuLibrary) -> None:
    backend = make(every_op(), library, torch.float32)
    backend.allocate_kv_cache(8, 16)
    batch = Cache(16, num_blocks=8).batch([(1, 20)])

    logits = backend.run(dataclasses.replace(batch, logits_index=np.zeros(0, np.int32)))

    assert logits.shape == (0, VOCAB)


@pytest.mark.parametrize("num_blocks", [64, 96, 101])
def test_where_blocks_lie_changes_no_bit(library: CpuLibrary, num_blocks: int) -> None:
    program = every_op()
    weights = to_arrays(random_weights(program, torch.bfloat16))
    backend = CpuBackend(program, weights, weights["embed"].dtype, library, num_threads=2)
    logits = []
    for in_order in (False, True):
        backend.allocate_kv_cache(num_blocks, 4)
        cache = Cache(4, num_blocks, in_order=in_order)
        steps = [[(s, 1 + s % 9) for s in range(30)], [(s, 1) for s in range(30)]]
        logits.append([run(backend, cache.batch(work)) for work in steps])

    for scattered, in_order in zip(*logits, strict=True):
        assert torch.equal(scattered, in_order)


def side_by_side(
    block_size: int, *backends: Backend[Tensor] | CpuBackend
) -> Iterator[tuple[Tensor, ...]]:
    """The logits of all tokens of each step, by each backend."""
    cache = Cache(block_size, num_blocks=64)
    for backend in backends:
        backend.allocate_kv_cache(cache.num_blocks, block_size)
    for work in STEPS:
        batch = cache.batch(work, sample_all=True)
        yield tuple(
            run(backend, batch if isinstance(backend, CpuBackend) else safe(batch))
            for backend in backends
        )


def safe(batch: RaggedBatch) -> RaggedBatch:
    """The same for the reference, which gathers from padding and then masks it."""
    tables = np.where(batch.block_tables == 2**31 - 1, 0, batch.block_tables)
    return dataclasses.replace(batch, block_tables=tables)
