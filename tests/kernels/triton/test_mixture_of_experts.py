"""Experts against the reference; every path from route to combine, into poisoned outputs."""

from typing import TypeAlias

import pytest
import torch

from kernels.mixture_of_experts import mixture_of_experts_reference, route
from kernels.program import Activation
from kernels.triton.mixture_of_experts import make_workspace, mixture_of_experts

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
WIDTH, INNER = 37, 70
Weights: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_weights(num_experts: int, dtype: torch.dtype) -> Weights:
    """Router, gate_up and down, scaled so that results stay near 1."""
    return (
        random(num_experts, WIDTH, seed=1).to(dtype),
        (random(num_experts, 2 * INNER, WIDTH, seed=2) / WIDTH**0.5).to(dtype),
        (random(num_experts, WIDTH, INNER, seed=3) / INNER**0.5).to(dtype),
    )


def run(
    x: torch.Tensor,
    weights: Weights,
    top_k: int,
    device: torch.device,
    activation: Activation = "silu",
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    router, gate_up, down = (w.to(device) for w in weights)
    workspace = make_workspace(len(x) * top_k + 3, len(router), WIDTH, INNER, x.to(device))
    for floats in (workspace.shares, workspace.gated, workspace.chosen):
        floats.fill_(float("nan"))
    for integers in (workspace.experts, workspace.order, workspace.counts):
        integers.fill_(2**30)
    out = torch.full_like(x, float("nan"), device=device)
    if residual is not None:
        out.copy_(residual)
    mixture_of_experts(
        *(x.to(device), router, gate_up, down, top_k, activation, out, workspace),
        residual=None if residual is None else out,
    )
    return out.cpu()


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (5, 2), (8, 8)])
@pytest.mark.parametrize("num_rows", [1, 23])
def test_a_row_is_the_weighted_sum_of_its_experts(
    num_rows: int, num_experts: int, top_k: int, dtype: torch.dtype, device: torch.device
) -> None:
    x, weights = random(num_rows, WIDTH, seed=4).to(dtype), make_weights(num_experts, dtype)

    y = run(x, weights, top_k, device)

    tolerance = TOLERANCE[dtype]
    expected = mixture_of_experts_reference(x, *weights, top_k=top_k, activation="silu")
    torch.testing.assert_close(y, expected, atol=tolerance, rtol=tolerance)


def test_many_rows_share_high_tiles(device: torch.device) -> None:
    x, weights = random(90, WIDTH, seed=4), make_weights(3, torch.float32)

    y = run(x, weights, 2, device, "gelu_tanh")

    expected = mixture_of_experts_reference(x, *weights, top_k=2, activation="gelu_tanh")
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


def test_the_residual_may_be_the_output(device: torch.device) -> None:
    x, residual = random(7, WIDTH, seed=4), random(7, WIDTH, seed=5)
    weights = make_weights(4, torch.float32)

    y = run(x, weights, 2, device, residual=residual)

    expected = mixture_of_experts_reference(
        x, *weights, top_k=2, activation="silu", residual=residual.clone()
    )
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


def test_the_lower_of_equal_experts_is_taken(device: torch.device) -> None:
    x, (router, gate_up, down) = random(5, WIDTH, seed=4), make_weights(6, torch.float32)
    router.zero_()  # so that scores are equal to the last bit

    y = run(x, (router, gate_up, down), 2, device)

    assert route(x, router, 2)[1].tolist() == [[0, 1]] * 5
    expected = mixture_of_experts_reference(x, router, gate_up, down, 2, "silu")
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


def test_a_row_of_nan_does_not_touch_the_others(device: torch.device) -> None:
    x, weights = random(6, WIDTH, seed=4), make_weights(5, torch.float32)
    expected = run(x, weights, 2, device)
    x[3] = float("nan")

    y = run(x, weights, 2, device)

    others = [0, 1, 2, 4, 5]
    assert torch.equal(y[others], expected[others])
    assert y[3].isnan().all()
