"""Experts against a loop over rows written out here; learned positions against a sum."""

import pytest
import torch
import torch.nn.functional as F

from kernels.embed_positions import embed_positions_reference
from kernels.mixture_of_experts import mixture_of_experts_reference, route
from tests.kernels.test_ops import DTYPES, assert_close, random

WIDTH, INNER, NUM_EXPERTS = 37, 11, 5


def experts(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Router, gate_up and down, scaled so that results stay near 1."""
    return (
        random(NUM_EXPERTS, WIDTH, dtype=dtype, seed=1),
        random(NUM_EXPERTS, 2 * INNER, WIDTH, dtype=dtype, seed=2) / WIDTH**0.5,
        random(NUM_EXPERTS, WIDTH, INNER, dtype=dtype, seed=3) / INNER**0.5,
    )


def row_by_row(
    x: torch.Tensor, router: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, top_k: int
) -> torch.Tensor:
    """The formula in float64, one row and one expert at a time."""
    out = torch.zeros(len(x), WIDTH, dtype=torch.float64)
    for t, row in enumerate(x.double()):
        likelihoods = (router.double() @ row).softmax(-1)
        chosen = likelihoods.argsort(descending=True)[:top_k]
        for e in chosen:
            gate, up = (gate_up[e].double() @ row).chunk(2)
            share = likelihoods[e] / likelihoods[chosen].sum()
            out[t] += share * (down[e].double() @ (F.silu(gate) * up))
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("top_k", [1, 2, NUM_EXPERTS])
@pytest.mark.parametrize("num_rows", [1, 2, 23])
def test_a_row_is_the_weighted_sum_of_its_experts(
    num_rows: int, top_k: int, dtype: torch.dtype
) -> None:
    x, weights = random(num_rows, WIDTH, dtype=dtype), experts(dtype)

    y = mixture_of_experts_reference(x, *weights, top_k, "silu")

    assert y.dtype == dtype
    assert_close(y, row_by_row(x, *weights, top_k))


def test_the_residual_is_added_and_the_input_is_kept() -> None:
    x, residual, weights = random(7, WIDTH), random(7, WIDTH, seed=9), experts(torch.float32)
    before = x.clone()

    y = mixture_of_experts_reference(x, *weights, 2, "silu", residual)

    alone = mixture_of_experts_reference(x, *weights, 2, "silu")
    torch.testing.assert_close(y, alone + residual)
    assert torch.equal(x, before)


def test_a_row_does_not_depend_on_its_company() -> None:
    x, weights = random(19, WIDTH), experts(torch.float32)

    together = mixture_of_experts_reference(x, *weights, 2, "gelu")

    for t in (0, 7, 18):
        alone = mixture_of_experts_reference(x[t : t + 1], *weights, 2, "gelu")
        torch.testing.assert_close(together[t : t + 1], alone, atol=1e-5, rtol=1e-5)


def test_shares_sum_to_one_and_fall() -> None:
    shares, _ = route(random(29, WIDTH), random(NUM_EXPERTS, WIDTH, seed=1), 3)

    torch.testing.assert_close(shares.sum(-1), torch.ones(29))
    assert bool((shares[:, :-1] >= shares[:, 1:]).all())


def test_of_equal_experts_the_lower_numbers_are_chosen() -> None:
    router = torch.zeros(NUM_EXPERTS, WIDTH)
    router[3] = 1.0

    shares, chosen = route(torch.full((2, WIDTH), 0.1), router, 3)

    assert chosen.tolist() == [[3, 0, 1]] * 2
    assert shares[0, 1] == shares[0, 2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_positions_are_looked_up_behind_the_offset_and_added_in_place(dtype: torch.dtype) -> None:
    x, table = random(4, WIDTH, dtype=dtype), random(12, WIDTH, dtype=dtype, seed=1)
    expected = x + table[[2, 11, 5, 2]]

    y = embed_positions_reference(x, torch.tensor([0, 9, 3, 0]), table, offset=2)

    assert y is x
    assert torch.equal(x, expected)
