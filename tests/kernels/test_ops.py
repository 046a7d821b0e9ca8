"""The simple ops against formulas written out here, at odd sizes."""

import math

import pytest
import torch

from kernels.embed import embed_reference
from kernels.gated_activation import gated_activation_reference
from kernels.gather_rows import gather_rows_reference
from kernels.linear import (
    PackedWeight,
    linear_packed,
    linear_reference,
    pack_weight,
)
from kernels.logits import logits_packed, logits_reference
from kernels.norm import norm_reference
from kernels.program import Activation

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
DTYPES = list(TOLERANCE)
FORMULAS = {
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """`expected` is float64; the tolerance is that of the actual dtype."""
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_divides_by_the_root_of_the_mean_square(dtype: torch.dtype) -> None:
    x, weight = random(5, 37, dtype=dtype), random(37, dtype=dtype, seed=1)

    y = norm_reference("rms", x, weight, eps=1e-3)

    wide = x.double()
    mean_square = wide.pow(2).mean(-1, keepdim=True)
    assert y.dtype == dtype
    assert_close(y, wide / (mean_square + 1e-3).sqrt() * weight.double())


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_centres_and_scales(dtype: torch.dtype) -> None:
    x = random(5, 37, dtype=dtype)
    weight, bias = random(37, dtype=dtype, seed=1), random(37, dtype=dtype, seed=2)

    y = norm_reference("layer", x, weight, 1e-5, bias)

    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    variance = centred.pow(2).mean(-1, keepdim=True)
    assert_close(y, centred / (variance + 1e-5).sqrt() * weight.double() + bias.double())


def test_rms_norm_with_a_bias_adds_it() -> None:
    x, weight, bias = random(3, 7), random(7, seed=1), random(7, seed=2)

    with_bias = norm_reference("rms", x, weight, 1e-5, bias)

    torch.testing.assert_close(with_bias, norm_reference("rms", x, weight, 1e-5) + bias)


def test_norm_with_a_residual_adds_into_it_first() -> None:
    x, residual, weight = random(3, 7), random(3, 7, seed=1), random(7, seed=2)
    total = x + residual

    y = norm_reference("rms", x, weight, 1e-5, residual=residual)

    torch.testing.assert_close(residual, total)
    torch.testing.assert_close(y, norm_reference("rms", total, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 3, 33])
def test_linear_multiplies_adds_activates_and_adds(dtype: torch.dtype, num_rows: int) -> None:
    x, weight = random(num_rows, 37, dtype=dtype), random(29, 37, dtype=dtype, seed=1) / 6
    bias, residual = random(29, dtype=dtype, seed=2), random(num_rows, 29, dtype=dtype, seed=3)

    y = linear_reference(x, weight, bias, "silu", residual)

    z = x.double() @ weight.double().T + bias.double()
    assert_close(y, z / (1 + (-z).exp()) + residual.double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 7, 33, 130])
def test_a_packed_linear_is_the_plain_one(dtype: torch.dtype, num_rows: int) -> None:
    x, weight = random(num_rows, 37, dtype=dtype), random(29, 37, dtype=dtype, seed=1) / 6
    bias, residual = random(29, dtype=dtype, seed=2), random(num_rows, 29, dtype=dtype, seed=3)

    y = linear_packed(x, pack_weight(weight), bias, "relu", residual)

    z = (x.double() @ weight.double().T + bias.double()).relu()
    assert_close(y, z + residual.double())


def test_weights_are_packed_in_float32_on_this_cpu() -> None:
    assert isinstance(pack_weight(random(29, 37)), PackedWeight)


def test_packing_falls_back_to_the_plain_weight_where_it_cannot() -> None:
    weight = random(29, 37).double()  # oneDNN has no float64

    assert pack_weight(weight) is weight


@pytest.mark.parametrize("kind", list(FORMULAS))
def test_gated_activation_gates_the_second_half_by_the_first(kind: Activation) -> None:
    x = random(4, 26)

    y = gated_activation_reference(x, kind)

    gates = torch.tensor([[FORMULAS[kind](v) for v in row] for row in x[:, :13].tolist()])
    torch.testing.assert_close(y, gates * x[:, 13:], atol=1e-6, rtol=1e-5)


def test_embed_copies_rows() -> None:
    table = random(11, 5, dtype=torch.bfloat16)

    assert torch.equal(embed_reference(torch.tensor([10, 0, 10]), table), table[[10, 0, 10]])


def test_gather_rows_keeps_rows_in_the_order_asked_for() -> None:
    x = random(6, 5)

    assert torch.equal(gather_rows_reference(x, torch.tensor([4, 1])), x[[4, 1]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_are_float32_and_may_be_capped(dtype: torch.dtype) -> None:
    x, weight = random(3, 37, dtype=dtype), random(19, 37, dtype=dtype, seed=1)

    plain, capped = logits_reference(x, weight), logits_reference(x, weight, soft_cap=5.0)

    assert plain.dtype == capped.dtype == torch.float32
    assert capped.abs().max() <= 5
    torch.testing.assert_close(capped, 5 * torch.tanh(plain / 5))
    torch.testing.assert_close(
        logits_packed(x, pack_weight(weight), 5.0), capped, atol=TOLERANCE[dtype], rtol=2e-2
    )
