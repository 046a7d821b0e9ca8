"""The simple kernels against their references, at odd sizes, into poisoned outputs."""

import pytest
import torch

from kernels.embed import embed_reference
from kernels.embed_positions import embed_positions_reference
from kernels.gated_activation import gated_activation_reference
from kernels.gather_rows import gather_rows_reference
from kernels.linear import linear_reference
from kernels.logits import logits_reference
from kernels.norm import norm_reference
from kernels.program import Activation
from kernels.triton.embed import embed, embed_positions
from kernels.triton.gated_activation import gated_activation
from kernels.triton.gather_rows import gather_rows
from kernels.triton.interpreter import interpreted
from kernels.triton.linear import linear, needs_product
from kernels.triton.logits import logits
from kernels.triton.norm import norm

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
DTYPES = list(TOLERANCE)
ACTIVATIONS: tuple[Activation, ...] = ("relu", "silu", "gelu", "gelu_tanh")


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Of activations and weights."""
    chosen: torch.dtype = request.param
    return chosen


class Maker:
    """Random tensors of one dtype and device, and outputs full of NaN."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._generator = torch.Generator().manual_seed(0)

    def random(self, *shape: int) -> torch.Tensor:
        x = torch.randn(shape, generator=self._generator)
        return x.to(self._device, self._dtype)

    def poisoned(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.full(shape, float("nan"), dtype=dtype or self._dtype, device=self._device)


@pytest.fixture
def make(dtype: torch.dtype, device: torch.device) -> Maker:
    return Maker(dtype, device)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def assert_rounded(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """The same bits; but for bfloat16 in the interpreter, which cuts instead of rounding."""
    if interpreted() and actual.dtype == torch.bfloat16:
        torch.testing.assert_close(actual, expected, atol=0, rtol=2**-7)
    else:
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("width", [1, 37, 576])
@pytest.mark.parametrize(
    ("kind", "has_bias"), [("rms", False), ("rms", True), ("layer", True), ("layer", False)]
)
def test_norm(kind: str, has_bias: bool, width: int, make: Maker) -> None:
    x, weight = make.random(5, width), make.random(width)
    bias = make.random(width) if has_bias else None
    out = make.poisoned(5, width)

    norm(kind, x, weight, 1e-3, out, bias)  # type: ignore[arg-type]

    assert_close(out, norm_reference(kind, x, weight, 1e-3, bias))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norm_adds_into_the_residual_first(kind: str, make: Maker) -> None:
    x, residual, weight = make.random(7, 29), make.random(7, 29), make.random(29)
    expected_residual, out = residual.clone(), make.poisoned(7, 29)

    norm(kind, x, weight, 1e-5, out, residual=residual)  # type: ignore[arg-type]

    expected = norm_reference(kind, x, weight, 1e-5, residual=expected_residual)  # type: ignore[arg-type]
    assert_rounded(residual, expected_residual)
    assert_close(out, expected)


def test_norm_in_place(make: Maker) -> None:
    x, weight = make.random(3, 70), make.random(70)
    expected = norm_reference("rms", x, weight, 1e-5)

    norm("rms", x, weight, 1e-5, out=x)

    assert_close(x, expected)


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize(("num_rows", "width"), [(1, 1), (3, 51), (9, 300)])
def test_gated_activation(kind: Activation, num_rows: int, width: int, make: Maker) -> None:
    x, out = 3 * make.random(num_rows, 2 * width), make.poisoned(num_rows, width)

    gated_activation(x, kind, out)

    assert_close(out, gated_activation_reference(x, kind))


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("residual_is", ["absent", "apart", "out"])
def test_linear(
    activation: Activation | None, has_bias: bool, residual_is: str, make: Maker
) -> None:
    x, weight = make.random(9, 37), make.random(29, 37) / 6
    bias = make.random(29) if has_bias else None
    residual = None if residual_is == "absent" else make.random(9, 29)
    expected = linear_reference(x, weight, bias, activation, residual)
    in_place = residual_is == "out"
    out = residual if in_place and residual is not None else make.poisoned(9, 29)
    room = make.poisoned(9, 29) if needs_product(has_bias, activation, in_place) else None

    linear(x, weight, out, bias, activation, residual, room)

    assert_close(out, expected)


def test_embed_copies_rows_bit_for_bit(make: Maker, device: torch.device) -> None:
    table, out = make.random(11, 45), make.poisoned(5, 45)
    ids = torch.tensor([10, 0, 10, 3, 7], dtype=torch.int32, device=device)

    embed(ids, table, out)

    assert torch.equal(out, embed_reference(ids.long(), table))


def test_embed_never_reads_outside_the_table(make: Maker, device: torch.device) -> None:
    table, out = make.random(11, 5), make.poisoned(3, 5)

    embed(torch.tensor([-1, 11, 2**31 - 1], dtype=torch.int32, device=device), table, out)

    assert torch.equal(out, table[[0, 10, 10]])


def test_embed_positions_adds_rows(make: Maker, device: torch.device) -> None:
    table, x = make.random(30, 45), make.random(4, 45)
    positions = torch.tensor([0, 27, 3, 3], dtype=torch.int32, device=device)
    expected = embed_positions_reference(x.clone(), positions.long(), table, 2)

    embed_positions(positions, table, x, offset=2)

    assert_rounded(x, expected)


def test_gather_rows_keeps_rows_in_the_order_asked_for(make: Maker, device: torch.device) -> None:
    x, out = make.random(6, 45), make.poisoned(3, 45)
    index = torch.tensor([4, 1, 4], dtype=torch.int32, device=device)

    gather_rows(x, index, out)

    assert torch.equal(out, gather_rows_reference(x, index.long()))


@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_logits_are_float32_and_may_be_capped(soft_cap: float | None, make: Maker) -> None:
    x, weight = make.random(3, 37), make.random(83, 37)
    product, out = make.poisoned(3, 83), make.poisoned(3, 83, dtype=torch.float32)

    logits(x, weight, product, out, soft_cap)

    torch.testing.assert_close(out, logits_reference(x, weight, soft_cap), atol=1e-5, rtol=1e-5)


def test_no_rows_are_no_work(make: Maker, device: torch.device) -> None:
    none = torch.empty(0, dtype=torch.int32, device=device)

    norm("rms", make.random(0, 5), make.random(5), 1e-5, make.random(0, 5))
    gated_activation(make.random(0, 6), "silu", make.random(0, 3))
    linear(make.random(0, 5), make.random(4, 5), make.random(0, 4), make.random(4), "relu")
    embed(none, make.random(3, 5), make.random(0, 5))
    logits(make.random(0, 5), make.random(9, 5), make.random(0, 9), make.random(0, 9))
