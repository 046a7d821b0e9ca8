"""Whole programs in Triton equal the reference, padded and replayed or as they are."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from kernels.program import Program
from kernels.ragged_batch import RaggedBatch
from kernels.reference import ReferenceBackend
from kernels.triton.backend import TritonBackend, TritonBackendError
from kernels.triton.batch_check import BadBatch
from kernels.triton.graphs import Capture, CudaCapture, Replay, eager_capture
from tests.support.programs import VOCAB, Cache, Heads, every_op, random_weights

# Of float32 logits whose standard deviation is about 1.
TOLERANCE = 2e-4
# Sequences and their new tokens, step by step: prompts whole and in chunks, decodes among them.
STEPS = (
    [(1, 7), (2, 1), (3, 40)],
    [(1, 1), (2, 20), (3, 1), (4, 13)],
    [(4, 1), (3, 1), (2, 1), (1, 1), (5, 1)],
    [(5, 30), (1, 1)],
    [(3, 1), (1, 1), (4, 1), (5, 1), (2, 1)],
)


class CountingCapture:
    """A seam in which nothing is captured but the number of captures and replays."""

    def __init__(self) -> None:
        self.num_captures = self.num_replays = 0

    def __call__(self, work: Replay) -> Replay:
        self.num_captures += 1

        def replay() -> None:
            self.num_replays += 1
            work()

        return replay


def make(
    program: Program,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    kv_dtype: torch.dtype | None = None,
    capture: Capture | None = None,
) -> TritonBackend:
    weights = {name: w.to(device) for name, w in random_weights(program, dtype).items()}
    return TritonBackend(program, weights, kv_dtype=kv_dtype, capture=capture)


def side_by_side(
    program: Program,
    ours: TritonBackend,
    block_size: int = 16,
    steps: Sequence[Sequence[tuple[int, int]]] = STEPS,
    dtype: torch.dtype = torch.float32,
) -> Iterator[torch.Tensor]:
    """The difference of all tokens' logits to the reference's, step by step."""
    reference = ReferenceBackend(program, random_weights(program, dtype))
    cache = Cache(block_size, num_blocks=64)
    for backend in (ours, reference):
        backend.allocate_kv_cache(cache.num_blocks, block_size)
    for work in steps:
        batch = cache.batch(work, sample_all=True)
        yield (ours.run(batch).cpu() - reference.run(safe(batch))).abs()


def safe(batch: RaggedBatch) -> RaggedBatch:
    """The same for the reference, which gathers from padding and then masks it."""
    tables = np.where(batch.block_tables == 2**31 - 1, 0, batch.block_tables)
    return dataclasses.replace(batch, block_tables=tables)


@pytest.mark.parametrize("capture", [None, eager_capture], ids=["as it is", "padded"])
def test_every_op_computes_what_the_reference_does(
    capture: Capture | None, device: torch.device
) -> None:
    program = every_op()
    ours = make(program, device, capture=capture)

    errors = list(side_by_side(program, ours))

    assert torch.cat(errors).max() < TOLERANCE


@pytest.mark.parametrize(
    ("heads", "block_size"),
    [
        (Heads(num_heads=4, num_kv_heads=1, head_dim=80, rotary_dim=32), 5),
        (Heads(num_heads=3, num_kv_heads=1, head_dim=7, rotary_dim=6, sliding_window=9), 16),
        (Heads(num_heads=2, num_kv_heads=2, head_dim=16, rotary_dim=0, soft_cap=5.0), 48),
    ],
    ids=["partly rotated", "windowed", "capped"],
)
def test_layers_of_other_shapes(heads: Heads, block_size: int, device: torch.device) -> None:
    program = every_op(heads)
    ours = make(program, device, capture=eager_capture)

    errors = list(side_by_side(program, ours, block_size, STEPS[:3]))

    assert torch.cat(errors).max() < TOLERANCE


def test_long_contexts_are_split_and_merged(device: torch.device) -> None:
    program = every_op()
    ours = make(program, device, capture=eager_capture)
    steps = [[(1, 280)], [(1, 1), (2, 1)], [(2, 3), (1, 2)]]

    errors = list(side_by_side(program, ours, steps=steps))

    assert torch.cat(errors).max() < TOLERANCE


@pytest.mark.parametrize(
    ("dtype", "kv_dtype"),
    [(torch.float16, None), (torch.bfloat16, None), (torch.float16, torch.float8_e4m3fn)],
    ids=str,
)
def test_other_dtypes_come_near(
    dtype: torch.dtype, kv_dtype: torch.dtype | None, device: torch.device
) -> None:
    # Without experts: which of two that score alike is taken would decide the comparison.
    program = every_op(Heads(head_dim=16, rotary_dim=16))
    ours = make(program, device, dtype, kv_dtype)

    errors = torch.cat(list(side_by_side(program, ours, steps=STEPS[:2], dtype=dtype)))

    assert errors.median() < (0.03 if dtype == torch.float16 and kv_dtype is None else 0.15)


def test_sizes_are_captured_once_and_replayed(device: torch.device) -> None:
    program = every_op()
    counting = CountingCapture()
    ours = make(program, device, capture=counting)
    cache = Cache(16, num_blocks=64)
    ours.allocate_kv_cache(64, 16)

    for work in ([(1, 5)], [(1, 1)], [(1, 1)], [(2, 9)], [(1, 1), (2, 1)], [(2, 1), (1, 1)]):
        ours.run(cache.batch(work))

    assert counting.num_captures == 3  # 16 mixed tokens, 1 decode, 2 decodes
    assert counting.num_replays == 3


def test_a_new_cache_voids_what_was_captured(device: torch.device) -> None:
    program = every_op()
    counting = CountingCapture()
    ours = make(program, device, capture=counting)

    for num_blocks in (8, 9):
        ours.allocate_kv_cache(num_blocks, 16)
        ours.run(Cache(16, num_blocks).batch([(1, 1)]))

    assert counting.num_captures == 2


def test_warming_up_leaves_the_cache_alone_and_nothing_to_capture(device: torch.device) -> None:
    program = every_op()
    counting = CountingCapture()
    ours = make(program, device, capture=counting)
    cache = Cache(16, num_blocks=8)
    ours.allocate_kv_cache(8, 16)
    ours.run(cache.batch([(1, 5)]))
    twin = make(program, device)
    twin.allocate_kv_cache(8, 16)
    twin_cache = Cache(16, num_blocks=8)
    twin.run(twin_cache.batch([(1, 5)]))

    ours.warm_up(max_num_tokens=2)
    num_captures = counting.num_captures
    logits = ours.run(cache.batch([(1, 1), (2, 1)]))

    assert counting.num_captures == num_captures
    expected = twin.run(twin_cache.batch([(1, 1), (2, 1)]))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_padding_may_hold_what_a_sequence_of_nan_left(device: torch.device) -> None:
    program = every_op()
    weights = random_weights(program, torch.float32)
    weights["embed"][VOCAB - 1] = float("nan")
    clean, ours = (
        TritonBackend(program, {n: w.clone().to(device) for n, w in weights.items()}, capture=c)
        for c in (None, eager_capture)
    )
    for backend in (clean, ours):
        backend.allocate_kv_cache(8, 16)
    spoilt = Cache(16, num_blocks=8).batch([(1, 14)])
    ours.run(dataclasses.replace(spoilt, token_ids=np.full(14, VOCAB - 1, np.int32)))
    batch = Cache(16, num_blocks=8, seed=1).batch([(1, 2), (2, 1)])
    batch = dataclasses.replace(batch, token_ids=np.arange(3, dtype=np.int32))

    logits, expected = (backend.run(batch)[:, :-1] for backend in (ours, clean))

    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_only_sampled_rows_are_scored(device: torch.device) -> None:
    program = every_op()
    ours = make(program, device, capture=eager_capture)
    ours.allocate_kv_cache(8, 16)
    batch = Cache(16, num_blocks=8).batch([(1, 4), (2, 3)], sample_all=True)

    everything = ours.run(batch)
    some = ours.run(dataclasses.replace(batch, logits_index=np.array([6, 1], np.int32)))
    none = ours.run(dataclasses.replace(batch, logits_index=np.zeros(0, np.int32)))

    torch.testing.assert_close(some, everything[[6, 1]], atol=1e-5, rtol=1e-5)
    assert none.shape == (0, VOCAB)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("slot_mapping", 8 * 16, r"slot 128 is outside 0..127"),
        ("slot_mapping", -5, r"slot -5"),
        ("block_tables", 8, r"block 8 is outside 0..7"),
        ("block_tables", -1, r"block -1"),
        ("kv_lens", 0, r"kv_lens do not count"),
        ("kv_lens", 1000, r"kv_lens reach behind block tables"),
        ("cu_seqlens_q", 1, r"brings at least one token"),
        ("logits_index", 8, r"logits_index 8 is outside 0..7"),
        ("logits_index", -1, r"logits_index -1"),
    ],
)
def test_a_batch_that_points_outside_is_refused(
    name: str, value: int, complaint: str, device: torch.device
) -> None:
    backend = make(every_op(), device)
    backend.allocate_kv_cache(8, 16)
    batch = Cache(16, num_blocks=8).batch([(1, 7), (2, 1)])
    array = getattr(batch, name).copy()
    array.flat[0] = value

    with pytest.raises(BadBatch, match=complaint):
        backend.run(dataclasses.replace(batch, **{name: array}))


def test_the_kv_cache_takes_what_it_says(device: torch.device) -> None:
    heads = Heads(head_dim=64, rotary_dim=64)
    half, eighth = (
        make(every_op(heads), device, torch.bfloat16, kv_dtype)
        for kv_dtype in (None, torch.float8_e4m3fn)
    )

    block = 2 * 2 * 16 * 2 * 64 * 2  # layers, K and V, tokens, heads, dimensions, bytes
    assert half.kv_cache_bytes(9, 16) - half.kv_cache_bytes(8, 16) == block
    assert eighth.kv_cache_bytes(9, 16) == half.kv_cache_bytes(9, 16) // 2


def test_a_kv_dtype_without_kernels_is_refused(device: torch.device) -> None:
    with pytest.raises(TritonBackendError, match=r"KV cache of torch.int8 is not supported"):
        make(every_op(), device, kv_dtype=torch.int8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures real CUDA graphs: needs a GPU")
def test_real_graphs_replay_what_the_reference_computes(device: torch.device) -> None:
    program = every_op()
    ours = make(program, device, capture=CudaCapture())

    errors = list(side_by_side(program, ours, steps=[*STEPS, [(1, 1), (2, 1)], [(2, 1), (1, 1)]]))

    assert torch.cat(errors).max() < TOLERANCE
