"""Weights come out of their packing as they went in: one-hot activations show each of them."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from kernels.cpu.backend import CpuBackend
from kernels.cpu.library import CpuLibrary
from kernels.program import (
    Buffer,
    Embed,
    GatherRows,
    Logits,
    PagedAttention,
    Program,
    RopeStoreKv,
)
from kernels.ragged_batch import RaggedBatch
from tests.support.arrays import run, to_arrays

SHAPES = [(1, 7), (33, 9), (100, 64), (70, 130)]  # outputs, inputs: pairs of inputs even and odd
LIKELY_EXPONENT = 120


def one_layer(outputs: int, inputs: int) -> Program:
    """Logits of the embeddings; beside them the smallest attention, which a program must have."""
    heads = (1, 1, 1)
    return Program(
        ops=(
            Embed("tokens", out="x"),
            Embed("no_tokens", out="qkv"),
            RopeStoreKv("qkv", 0, *heads, None),
            PagedAttention("qkv", "attended", 0, *heads, scale=1.0),
            GatherRows("x", out="last"),
            Logits("last", weight="weights"),
        ),
        buffers={
            "x": Buffer(inputs),
            "qkv": Buffer(3),
            "attended": Buffer(1),
            "last": Buffer(inputs, rows="logits"),
        },
        weights={
            "tokens": (outputs, inputs),
            "no_tokens": (outputs, 3),
            "weights": (outputs, inputs),
        },
    )


def multiply(library: CpuLibrary, weights: Tensor, rows: Tensor) -> Tensor:
    """`rows` [num_rows, inputs] times `weights` [outputs, inputs], all in one step."""
    outputs, inputs = weights.shape
    program = one_layer(max(outputs, len(rows)), inputs)
    table = torch.zeros(program.weights["tokens"], dtype=weights.dtype)
    table[: len(rows)] = rows
    padded = torch.zeros(program.weights["weights"], dtype=weights.dtype)
    padded[:outputs] = weights
    nothing = torch.zeros(program.weights["no_tokens"], dtype=weights.dtype)
    arrays = to_arrays({"tokens": table, "no_tokens": nothing, "weights": padded})
    backend = CpuBackend(program, arrays, arrays["tokens"].dtype, library, num_threads=2)
    backend.allocate_kv_cache(len(rows), 1)
    return run(backend, every_token_once(len(rows)))[:, :outputs]


def every_token_once(num_tokens: int) -> RaggedBatch:
    """Each its own sequence."""
    numbers = np.arange(num_tokens, dtype=np.int32)
    return RaggedBatch(
        token_ids=numbers,
        positions=np.zeros(num_tokens, np.int32),
        cu_seqlens_q=np.arange(num_tokens + 1, dtype=np.int32),
        kv_lens=np.ones(num_tokens, np.int32),
        block_tables=numbers[:, None],
        slot_mapping=numbers,
        logits_index=numbers,
    )


def as_bfloat16(bits: npt.NDArray[np.uint16]) -> Tensor:
    return torch.from_numpy(bits.astype(np.int16)).view(torch.bfloat16)


def weights_with(exponents: npt.NDArray[np.int64], seed: int = 0) -> Tensor:
    """Any signs and mantissas."""
    random = np.random.default_rng(seed)
    signs = random.integers(0, 2, exponents.shape) << 15
    return as_bfloat16(
        (signs | exponents << 7 | random.integers(0, 128, exponents.shape)).astype(np.uint16)
    )


def check_every_weight(library: CpuLibrary, weights: Tensor) -> None:
    shown = multiply(library, weights, torch.eye(weights.shape[1], dtype=weights.dtype))
    assert torch.equal(shown.T, weights.float())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_of_any_exponent_are_exact(library: CpuLibrary, shape: tuple[int, int]) -> None:
    exponents = np.random.default_rng(1).integers(1, 255, shape)

    check_every_weight(library, weights_with(exponents))


@pytest.mark.parametrize("share", [0.0, 0.003, 0.2, 1.0])
def test_so_are_zeros_and_weights_far_from_the_others(library: CpuLibrary, share: float) -> None:
    random = np.random.default_rng(2)
    exponents = LIKELY_EXPONENT - random.geometric(0.5, (70, 130)).clip(max=14)
    rare = random.random(exponents.shape) < share
    exponents[rare] = random.integers(1, 200, exponents.shape)[rare]
    weights = weights_with(exponents)
    weights[random.random(exponents.shape) < 0.1] = 0

    check_every_weight(library, weights)


def test_a_weight_that_is_not_a_number_spoils_its_output_alone(library: CpuLibrary) -> None:
    weights = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = weights.float()
    weights[7, 5], weights[33, 29] = torch.nan, torch.inf

    shown = multiply(library, weights, torch.eye(30, dtype=torch.bfloat16)).T

    others = [row for row in range(40) if row not in (7, 33)]
    assert torch.equal(shown[others], expected[others])
    assert shown[7].isnan().all()
    assert shown[33, 29] == torch.inf


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_row_has_the_same_bits_alone_and_among_others(
    library: CpuLibrary, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(70, 130, generator=generator) ** 9  # many exponents
    weights, rows = weights.to(dtype), torch.randn(61, 130, generator=generator).to(dtype)

    together = multiply(library, weights, rows)

    for count in (*range(1, 14), 25):
        assert torch.equal(multiply(library, weights, rows[:count]), together[:count])
    exact = rows.double() @ weights.double().T
    assert torch.allclose(together.double(), exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))
