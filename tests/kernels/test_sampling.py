"""Truncation and draws against a plain walk over the sorted vocabulary."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from operator import itemgetter
from typing import TypeAlias

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.backend import Sampler
from kernels.host_array import HostArray, Int64Array
from kernels.reference_sampler import ReferenceSampler, draw_reference
from kernels.sampling import Biases, Penalties, Randomness
from tests.support.samplers import SAMPLERS, make_sampler

VOCAB = 1500

SamplerFor: TypeAlias = Callable[[int], Sampler[Tensor]]


@pytest.fixture(params=SAMPLERS)
def sampler_for(request: pytest.FixtureRequest) -> Iterator[SamplerFor]:
    """Makes samplers of one implementation for a vocabulary."""
    with ExitStack() as stack:
        yield lambda vocab_size: stack.enter_context(make_sampler(request.param, vocab_size))


@pytest.fixture
def sampler(sampler_for: SamplerFor) -> Sampler[Tensor]:
    return sampler_for(VOCAB)


def draw_all(sampler: Sampler[Tensor], logits: Tensor, r: Randomness[HostArray]) -> Int64Array:
    """One draw of each row; of a single row, as many as there are parameters."""
    rows = np.arange(len(logits)) if len(logits) > 1 else np.zeros(len(r.seeds), np.int64)
    return sampler.sample(logits, rows, r)


def randomness(
    rows: int,
    temperature: float = 1.0,
    top_k: int = 2**31,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 3,
) -> Randomness[HostArray]:
    return Randomness(
        np.full(rows, temperature, np.float32),
        np.full(rows, top_k),
        np.full(rows, top_p),
        np.full(rows, min_p, np.float32),
        np.full(rows, seed),
        np.arange(rows),
    )


def allowed(logits: torch.Tensor, r: Randomness[HostArray]) -> dict[int, float]:
    """Ids that may be drawn from one row, with their probabilities: the module's text as loops."""
    scaled = logits.double() / float(r.temperature[0])
    p = torch.softmax(scaled, 0).tolist()
    order = sorted(range(len(p)), key=lambda i: -p[i])
    order = [i for i in order if p[i] >= r.min_p[0].item() * p[order[0]]]
    order = order[: int(r.top_k[0])]
    total = sum(p[i] for i in order)
    kept, before = [], 0.0
    for i in order:
        if before >= r.top_p[0].item():
            break
        kept.append(i)
        before += p[i] / total
    mass = sum(p[i] for i in kept)
    return {i: p[i] / mass for i in kept}


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 7},
        {"top_k": 1},
        {"top_p": 0.5},
        {"top_p": 0.01},
        {"min_p": 0.2},
        {"temperature": 0.3, "top_k": 40, "top_p": 0.8},
        {"temperature": 1.7, "top_k": 300, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 50.0, "top_p": 0.97},  # more than the likeliest 1024 ids stay
    ],
    ids=str,
)
def test_draws_follow_the_truncated_distribution(
    settings: dict[str, float], sampler: Sampler[Tensor]
) -> None:
    row = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1)) * 2
    draws = 4_000 if settings.get("temperature") == 50.0 else 10_000
    r = randomness(draws, **settings)  # type: ignore[arg-type]

    ids = draw_all(sampler, row[None], r).tolist()

    expected = allowed(row, r)
    assert set(ids) <= set(expected)
    likely = [i for i, p in expected.items() if p * draws >= 10]
    counts = np.bincount(ids, minlength=VOCAB)
    chi_square = sum((counts[i] - expected[i] * draws) ** 2 / (expected[i] * draws) for i in likely)
    # Mean and deviation of the chi-square distribution: n and sqrt(2 n).
    assert chi_square < len(likely) + 4 * (2 * len(likely)) ** 0.5 + 1


def test_a_row_is_drawn_alike_in_any_batch(sampler: Sampler[Tensor]) -> None:
    logits = torch.randn(70, VOCAB, generator=torch.Generator().manual_seed(2)) * 3
    mixed = randomness(70, temperature=0.9, top_k=90, top_p=0.9)
    mixed.top_k[::3], mixed.top_p[1::3], mixed.min_p[::5] = VOCAB, 1.0, 0.1

    together = draw_all(sampler, logits, mixed)

    alone = [
        draw_all(sampler, logits[i : i + 1], mixed.map(itemgetter(slice(i, i + 1)))).item()
        for i in range(70)
    ]
    assert together.tolist() == alone


def test_tokens_as_likely_as_the_last_one_kept_stay(sampler_for: SamplerFor) -> None:
    logits = torch.log(torch.tensor([[0.4, 0.2, 0.2, 0.2]]))

    by_count = draw_all(sampler_for(4), logits, randomness(400, top_k=2))
    by_mass = draw_all(sampler_for(4), logits, randomness(400, top_p=0.5))

    assert set(by_count.tolist()) == set(by_mass.tolist()) == {0, 1, 2, 3}


def test_forbidden_tokens_are_never_drawn_whatever_the_number() -> None:
    p = torch.tensor([[0.0, 1e-30, 0.0, 0.0, 0.0, 0.0, 3e-30]])
    many = 2_000

    drawn = draw_reference(p.expand(many, 7), torch.full((many,), -5), torch.arange(many))

    assert set(drawn.tolist()) == {1, 6}
    assert abs((drawn == 6).float().mean().item() - 0.75) < 4 * (0.75 * 0.25 / many) ** 0.5


def test_rounding_of_the_logits_hardly_ever_changes_what_is_drawn(sampler: Sampler[Tensor]) -> None:
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(2_000, VOCAB, generator=generator) * 2
    rounded = logits + 1e-5 * torch.randn(2_000, VOCAB, generator=generator)

    changed = draw_all(sampler, logits, randomness(2_000)) != draw_all(
        sampler, rounded, randomness(2_000)
    )

    # About one in 1e5; one in a thousand if a uniform number cut the running sum.
    assert changed.sum() <= 1


def test_a_tiny_temperature_takes_the_largest_logit(sampler: Sampler[Tensor]) -> None:
    logits = torch.randn(50, VOCAB, generator=torch.Generator().manual_seed(4))

    drawn = draw_all(sampler, logits, randomness(50, 1e-5))

    assert drawn.tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("vocab_size", [1, 2, 5, 15, 16, 17, 63, 64, 65, 1000, 5_000])
def test_the_largest_logit_is_found_and_the_lowest_of_equals(
    sampler_for: SamplerFor, vocab_size: int
) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randint(-9, 9, (40, vocab_size), generator=generator).float()
    logits[::3] = float("-inf")
    logits[::6, vocab_size // 2] = -8.0

    token_ids, largest = sampler_for(vocab_size).argmax(logits)

    assert largest.tolist() == logits.amax(-1).tolist()
    assert token_ids.tolist() == [row.tolist().index(row.max().item()) for row in logits]


@pytest.mark.parametrize("nan", [math.nan, -math.nan])
def test_a_row_with_a_nan_has_no_largest_logit(sampler_for: SamplerFor, nan: float) -> None:
    vocab_size = 150
    logits = torch.randn(vocab_size, vocab_size)
    logits[1:, 1:].fill_diagonal_(nan)

    token_ids, largest = sampler_for(vocab_size).argmax(logits)

    assert np.isnan(largest).tolist() == [False] + [True] * (vocab_size - 1)
    assert token_ids.min() >= 0
    assert token_ids.max() < vocab_size


@pytest.mark.parametrize("vocab_size", [1, 3, 4, 17, 64, 65, 100, 255, 3001, 20_000])
def test_every_implementation_draws_the_same_tokens(
    sampler_for: SamplerFor, vocab_size: int
) -> None:
    """Mixed parameters, flat and steep rows, forbidden tokens; rows in an order of their own."""
    num_rows, draws = 24, 96
    rng = np.random.default_rng(vocab_size)
    logits = torch.from_numpy(rng.standard_normal((num_rows, vocab_size), np.float32))
    logits *= torch.from_numpy(rng.uniform(0.1, 9, (num_rows, 1)).astype(np.float32))
    logits[:, 1:][torch.from_numpy(rng.random((num_rows, vocab_size - 1)) < 0.1)] = -math.inf
    top_k = rng.integers(1, vocab_size + 1, draws)
    few = rng.integers(1, min(vocab_size, 60) + 1, draws)
    r = Randomness(
        temperature=rng.choice([1e-5, 0.3, 1, 1.7, 100], draws).astype(np.float32),
        top_k=np.choose(rng.integers(0, 3, draws), [few, top_k, vocab_size]),
        top_p=np.choose(rng.integers(0, 2, draws), [rng.random(draws), 1.0]),
        min_p=rng.choice([0.0, 0.0, 0.03, 0.5, 1], draws).astype(np.float32),
        seeds=rng.integers(-(2**63), 2**63, draws),
        positions=rng.integers(0, 2**40, draws),
    )
    rows = rng.integers(0, num_rows, draws)

    drawn = sampler_for(vocab_size).sample(logits, rows, r)

    assert np.array_equal(drawn, ReferenceSampler().sample(logits, rows, r))


def test_a_row_of_equal_logits_is_drawn_from_evenly(sampler: Sampler[Tensor]) -> None:
    draws = 3_000

    ids = draw_all(sampler, torch.full((1, VOCAB), -7.0), randomness(draws, top_k=9, top_p=0.5))

    counts = np.bincount(ids // 100, minlength=15)  # all are as likely as the last one kept
    assert (abs(counts - draws / 15) < 5 * (draws / 15) ** 0.5).all()


def test_the_logits_are_not_written(sampler: Sampler[Tensor]) -> None:
    logits = torch.randn(3, VOCAB)
    before = logits.clone()

    sampler.argmax(logits)
    draw_all(sampler, logits, randomness(3, top_k=5, top_p=0.5, min_p=0.1))

    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "row 0: temperature 0"),
        ({"temperature": math.nan}, "temperature -?nan"),
        ({"top_k": 0}, "top_k 0"),
        ({"top_p": 0.0}, "top_p 0"),
        ({"min_p": 1.5}, "min_p 1.5"),
    ],
    ids=str,
)
def test_c_refuses_parameters_that_are_out_of_range(
    settings: dict[str, float], message: str
) -> None:
    with make_sampler("cpu", VOCAB) as sampler, pytest.raises(ValueError, match=message):
        draw_all(sampler, torch.zeros(1, VOCAB), randomness(1, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("row", [-1, 2, 2**40])
def test_c_refuses_rows_that_are_not_there(row: int) -> None:
    with make_sampler("cpu", VOCAB) as sampler, pytest.raises(ValueError, match=f"row {row} of 2"):
        sampler.sample(torch.zeros(2, VOCAB), np.array([row]), randomness(1))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_c_survives_rows_that_are_not_finite(value: float) -> None:
    logits = torch.full((1, VOCAB), value)
    every = randomness(4, top_k=3)
    every.top_k[::2] = VOCAB
    every.top_p[:2] = 0.5

    with make_sampler("cpu", VOCAB) as sampler:
        drawn = draw_all(sampler, logits, every)
        spoilt = torch.randn(1, VOCAB).index_fill(1, torch.from_numpy(drawn), value)
        drawn_with_one = draw_all(sampler, spoilt, every)

    assert ((drawn >= 0) & (drawn < VOCAB)).all()
    assert ((drawn_with_one >= 0) & (drawn_with_one < VOCAB)).all()


def test_biases_are_added_and_minus_infinity_forbids(sampler_for: SamplerFor) -> None:
    logits = torch.zeros(3, 5)
    biases = Biases(  # rows count among those that are edited; one id has two
        np.array([0, 1, 1, 1]),
        np.array([3, 4, 4, 4]),
        np.array([2.5, -1.0, float("-inf"), 7.0], np.float32),
    )

    edited = sampler_for(5).edit(logits, np.array([2, 0]), biases, None)

    assert edited.tolist() == [[0, 0, 0, 2.5, 0], [0, 0, 0, 0, float("-inf")]]
    assert not logits.any()


def test_penalties_pull_both_signs_down_and_subtract(sampler_for: SamplerFor) -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, 1.0]])
    penalties = Penalties(
        np.array([0, 0, 0]),
        np.array([0, 1, 2]),
        np.array([1.25, 1.25, 1.25], np.float32),
        np.array([0.0, 0.5, 1.0], np.float32),
    )

    edited = sampler_for(4).edit(logits, np.array([0]), None, penalties)

    torch.testing.assert_close(edited, torch.tensor([[1.6, -3.0, 0.6, 1.0]]))


def test_an_infinite_penalty_is_left_to_whoever_looks_for_the_largest(
    sampler_for: SamplerFor,
) -> None:
    """Zero times infinity is no number; no warning is printed for it either."""
    penalties = Penalties(
        np.array([0]), np.array([1]), np.array([math.inf], np.float32), np.zeros(1, np.float32)
    )
    sampler = sampler_for(2)

    edited = sampler.edit(torch.zeros(1, 2), np.array([0]), None, penalties)

    assert np.isnan(sampler.argmax(edited)[1]).all()


@pytest.mark.parametrize("count", [0, 1, 20, VOCAB - 1, VOCAB])
def test_logprobs_are_a_log_softmax_with_the_likeliest_first(
    sampler: Sampler[Tensor], count: int
) -> None:
    logits = 5 * torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(9))
    logits[2, 70:] = -math.inf
    rows, token_ids = np.array([2, 0]), np.array([3, VOCAB - 1])
    expected = logits.double().log_softmax(-1)[[2, 0]]

    found = sampler.logprobs(logits, rows, token_ids, count)

    assert found.own == pytest.approx(expected[[0, 1], token_ids].numpy(), abs=1e-5)
    top = expected.topk(count)
    assert found.top == pytest.approx(top.values.numpy(), abs=1e-5)
    finite = np.isfinite(found.top)
    assert (found.top_ids == top.indices.numpy())[finite].all()
