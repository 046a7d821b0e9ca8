"""Attention in C alone: a program whose tokens are q, k and v, and whose logits are the result."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.backend import Backend
from kernels.cpu.backend import NUM_LOOKS, CpuBackend
from kernels.cpu.library import CpuLibrary
from kernels.program import (
    Buffer,
    Embed,
    GatherRows,
    Logits,
    PagedAttention,
    Program,
    Rope,
    RopeStoreKv,
)
from kernels.ragged_batch import Int32Array, RaggedBatch
from kernels.reference import ReferenceBackend
from tests.support.arrays import run, to_arrays
from tests.support.programs import VOCAB, Cache, Heads

# See kernels/README.md; in float32 both sides have an error.
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 2e-2}
# Tokens that are cached before, and new ones: decodes long and short, a whole prompt, chunks.
MIXED = ((0, 1), (8, 1), (0, 5), (199, 1), (23, 17), (69, 1), (129, 2), (520, 1))
CACHED = 1400  # tokens that the cache has room for
LONGEST = 1100


def plain(num_heads: int, num_kv_heads: int, head_dim: int, **others: float) -> Heads:
    heads = Heads(num_heads, num_kv_heads, head_dim, rotary_dim=0)
    return dataclasses.replace(heads, **others)  # type: ignore[arg-type]


def attention_alone(heads: Heads) -> Program:
    h, width = heads, heads.num_heads * heads.head_dim
    shape = (h.num_heads, h.num_kv_heads, h.head_dim)
    half = h.rotary_dim // 2
    rope = Rope(tuple(100.0 ** (-i / half) for i in range(half)), 1.1) if half else None
    vocab = max(VOCAB, width)
    attention = PagedAttention(
        "qkv",
        "attended",
        0,
        *shape,
        scale=h.head_dim**-0.5,
        sliding_window=h.sliding_window,
        soft_cap=h.soft_cap,
    )
    return Program(
        ops=(
            Embed("tokens", out="qkv"),
            RopeStoreKv("qkv", 0, *shape, rope),
            attention,
            GatherRows("attended", out="last"),
            Logits("last", weight="identity"),
        ),
        buffers={
            "qkv": Buffer(h.qkv_width),
            "attended": Buffer(width),
            "last": Buffer(width, rows="logits"),
        },
        weights={"tokens": (vocab, h.qkv_width), "identity": (vocab, width)},
    )


def weights_of(program: Program, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(program.weights["tokens"], generator=generator)
    tokens[0] = torch.nan  # the token that no live sequence has
    return {
        "tokens": tokens.to(dtype),
        "identity": torch.eye(*program.weights["identity"]).to(dtype),
    }


def cpu_backend(
    program: Program,
    weights: dict[str, Tensor],
    library: CpuLibrary,
    num_threads: int,
    num_looks: int = NUM_LOOKS,
) -> CpuBackend:
    arrays = to_arrays(weights)
    dtype = arrays["tokens"].dtype
    return CpuBackend(program, arrays, dtype, library, num_threads, num_looks=num_looks)


def tokens_of(positions: Int32Array) -> Int32Array:
    """Every sequence is the same, so that it can be run in many ways."""
    tokens = np.random.default_rng(3).integers(1, VOCAB, 2 * LONGEST)
    return tokens[positions].astype(np.int32)


def next_batch(cache: Cache, work: Sequence[tuple[int, int]]) -> RaggedBatch:
    batch = cache.batch(work, sample_all=True)
    batch.token_ids[:] = tokens_of(batch.positions)
    return batch


def attend_mixed(backend: Backend[Tensor] | CpuBackend, block_size: int) -> Tensor:
    """The results of MIXED's new tokens."""
    cache = Cache(block_size, num_blocks=CACHED // block_size)
    before = [(s, cached) for s, (cached, _) in enumerate(MIXED) if cached > 0]
    new = [(s, count) for s, (_, count) in enumerate(MIXED)]
    for work in (before, new):
        batch = next_batch(cache, work)
        if not isinstance(backend, CpuBackend):
            tables = np.where(batch.block_tables == 2**31 - 1, 0, batch.block_tables)
            batch = dataclasses.replace(batch, block_tables=tables)
        result = run(backend, batch)
    return result


def compare(
    library: CpuLibrary, heads: Heads, dtype: torch.dtype, block_size: int, spread: float = 1.0
) -> Tensor:
    """Absolute errors of MIXED, on three threads, against the reference in float32.

    Args:
        spread: standard deviation of the scores.
    """
    program = attention_alone(heads)
    weights = weights_of(program, dtype)
    num_qk_heads = heads.num_heads + heads.num_kv_heads
    weights["tokens"][:, : num_qk_heads * heads.head_dim] *= spread**0.5
    exact = ReferenceBackend(program, {name: w.float() for name, w in weights.items()})
    ours = cpu_backend(program, weights, library, num_threads=3)
    for backend in (exact, ours):
        backend.allocate_kv_cache(CACHED // block_size, block_size)
    return abs(attend_mixed(ours, block_size) - attend_mixed(exact, block_size))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "heads",
    [
        plain(9, 3, 64),
        plain(2, 2, 80, sliding_window=13),
        plain(4, 2, 96, soft_cap=2.5),
        plain(7, 1, 128, sliding_window=64, soft_cap=1.5),
        plain(2, 1, 256, sliding_window=510),
        plain(50, 1, 33),
        plain(3, 3, 1),
    ],
    ids=lambda heads: f"{heads.num_heads}x{heads.head_dim}",
)
def test_a_mixed_batch_is_what_the_reference_makes_of_it(
    library: CpuLibrary, heads: Heads, dtype: torch.dtype
) -> None:
    assert compare(library, heads, dtype, block_size=16).max() < TOLERANCE[dtype]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("spread", [0.0, 3.0, 16.0, 400.0])
def test_later_keys_may_score_higher_by_any_amount(
    library: CpuLibrary, dtype: torch.dtype, tolerance: float, spread: float
) -> None:
    errors = compare(library, plain(3, 1, 64), dtype, block_size=16, spread=spread)

    assert errors.max() < tolerance


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("block_size", [1, 7, 40])
def test_blocks_may_have_any_size(library: CpuLibrary, dtype: torch.dtype, block_size: int) -> None:
    assert compare(library, plain(4, 2, 12), dtype, block_size).max() < TOLERANCE[dtype]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 6e-2)])
@pytest.mark.parametrize("rotary_dim", [6, 72])
def test_q_and_k_turn(
    library: CpuLibrary, dtype: torch.dtype, tolerance: float, rotary_dim: int
) -> None:
    heads = Heads(num_heads=4, num_kv_heads=2, head_dim=73, rotary_dim=rotary_dim)

    assert compare(library, heads, dtype, block_size=16).max() < tolerance


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("block_size", [16, 7])
def test_slots_that_are_not_a_sequences_own_may_hold_anything(
    library: CpuLibrary, dtype: torch.dtype, block_size: int
) -> None:
    program = attention_alone(plain(6, 2, 10))
    backend = cpu_backend(program, weights_of(program, dtype), library, num_threads=2)
    num_blocks = CACHED // block_size
    backend.allocate_kv_cache(num_blocks, block_size)
    clean = attend_mixed(backend, block_size)
    spoil = Cache(block_size, num_blocks).batch([(0, num_blocks * block_size)])
    spoil.token_ids[:] = 0
    assert run(backend, spoil).isnan().any()

    dirty = attend_mixed(backend, block_size)

    assert torch.equal(dirty, clean)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("heads", "block_size"),
    [(plain(3, 1, 64), 16), (plain(2, 2, 10, sliding_window=700), 24), (plain(5, 1, 7), 7)],
    ids=["split", "window", "odd"],
)
def test_a_long_context_has_the_same_bits_however_its_keys_are_shared(
    library: CpuLibrary, dtype: torch.dtype, heads: Heads, block_size: int
) -> None:
    program = attention_alone(heads)

    def last_rows(counts: Sequence[int], num_threads: int, num_looks: int = NUM_LOOKS) -> Tensor:
        weights = weights_of(program, dtype)
        backend = cpu_backend(program, weights, library, num_threads, num_looks)
        cache = Cache(block_size, num_blocks=-(-LONGEST // block_size), seed=num_threads)
        backend.allocate_kv_cache(cache.num_blocks, block_size)
        rows = [run(backend, next_batch(cache, [(0, count)])) for count in counts]
        return torch.cat(rows)[-2:]

    at_once = last_rows([LONGEST], num_threads=1)

    assert not at_once.isnan().any()
    assert torch.equal(last_rows([LONGEST - 2, 1, 1], num_threads=4), at_once)
    assert torch.equal(last_rows([LONGEST - 300, 293, 7], num_threads=2), at_once)
    # Without a look items are begun twice; see test_items.
    assert torch.equal(last_rows([LONGEST - 9, 1, 8], num_threads=7, num_looks=0), at_once)


def test_a_token_that_is_not_a_number_stays_one_and_stays_alone(library: CpuLibrary) -> None:
    """So that the worker sees whose result is broken."""
    program = attention_alone(plain(2, 1, 16))
    backend = cpu_backend(program, weights_of(program, torch.float32), library, num_threads=1)
    backend.allocate_kv_cache(4, 16)
    cache = Cache(16, num_blocks=4)
    backend.run(next_batch(cache, [(0, 20), (1, 20)]))
    batch = next_batch(cache, [(0, 1), (1, 1)])
    batch.token_ids[0] = 0

    broken, whole = run(backend, batch)[:, :32]

    assert broken.isnan().all()
    assert not whole.isnan().any()
