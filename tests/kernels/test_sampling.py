"""Truncation and draws against a plain walk over the sorted vocabulary."""

import numpy as np
import pytest
import torch

from kernels.sampling import (
    Biases,
    Penalties,
    Randomness,
    add_biases_reference,
    add_penalties_reference,
    draw_reference,
    sample_reference,
)

VOCAB = 1500


def randomness(
    rows: int,
    temperature: float = 1.0,
    top_k: int = VOCAB,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 3,
) -> Randomness:
    return Randomness(
        torch.full((rows,), temperature),
        torch.full((rows,), top_k),
        torch.full((rows,), top_p, dtype=torch.float64),
        torch.full((rows,), min_p),
        torch.full((rows,), seed),
        torch.arange(rows),
    )


def allowed(logits: torch.Tensor, r: Randomness) -> dict[int, float]:
    """Ids that may be drawn from one row, with their probabilities: the module's text as loops."""
    scaled = logits.double() / r.temperature[0].double()
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
def test_draws_follow_the_truncated_distribution(settings: dict[str, float]) -> None:
    row = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1)) * 2
    draws = 20_000 if settings.get("temperature") != 50.0 else 4_000
    r = randomness(draws, **settings)  # type: ignore[arg-type]

    ids = sample_reference(row.expand(draws, VOCAB), r).tolist()

    expected = allowed(row, r)
    assert set(ids) <= set(expected)
    likely = [i for i, p in expected.items() if p * draws >= 10]
    counts = np.bincount(ids, minlength=VOCAB)
    chi_square = sum((counts[i] - expected[i] * draws) ** 2 / (expected[i] * draws) for i in likely)
    # Mean and deviation of the chi-square distribution: n and sqrt(2 n).
    assert chi_square < len(likely) + 4 * (2 * len(likely)) ** 0.5 + 1


def test_a_row_is_drawn_alike_in_any_batch() -> None:
    logits = torch.randn(70, VOCAB, generator=torch.Generator().manual_seed(2)) * 3
    mixed = randomness(70, temperature=0.9, top_k=90, top_p=0.9)
    mixed.top_k[::3], mixed.top_p[1::3], mixed.min_p[::5] = VOCAB, 1.0, 0.1

    together = sample_reference(logits, mixed)

    alone = [
        sample_reference(logits[i : i + 1], mixed.rows(slice(i, i + 1))).item() for i in range(70)
    ]
    assert together.tolist() == alone


def test_tokens_as_likely_as_the_last_one_kept_stay() -> None:
    logits = torch.log(torch.tensor([[0.4, 0.2, 0.2, 0.2]])).expand(400, 4)

    by_count = sample_reference(logits, randomness(400, top_k=2))
    by_mass = sample_reference(logits, randomness(400, top_p=0.5))

    assert set(by_count.tolist()) == set(by_mass.tolist()) == {0, 1, 2, 3}


def test_forbidden_tokens_are_never_drawn_whatever_the_number() -> None:
    p = torch.tensor([[0.0, 1e-30, 0.0, 0.0, 0.0, 0.0, 3e-30]])
    many = 2_000

    drawn = draw_reference(p.expand(many, 7), torch.full((many,), -5), torch.arange(many))

    assert set(drawn.tolist()) == {1, 6}
    assert abs((drawn == 6).float().mean().item() - 0.75) < 4 * (0.75 * 0.25 / many) ** 0.5


def test_rounding_of_the_logits_hardly_ever_changes_what_is_drawn() -> None:
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(2_000, VOCAB, generator=generator) * 2
    rounded = logits + 1e-5 * torch.randn(2_000, VOCAB, generator=generator)

    changed = sample_reference(logits, randomness(2_000)) != sample_reference(
        rounded, randomness(2_000)
    )

    # About one in 1e5; one in a thousand if a uniform number cut the running sum.
    assert changed.sum() <= 1


def test_a_tiny_temperature_takes_the_largest_logit() -> None:
    logits = torch.randn(50, VOCAB, generator=torch.Generator().manual_seed(4))

    assert torch.equal(sample_reference(logits, randomness(50, 1e-5)), logits.argmax(-1))


def test_biases_are_added_and_minus_infinity_forbids() -> None:
    logits = torch.zeros(2, 5)
    biases = Biases(
        torch.tensor([0, 1, 1]),
        torch.tensor([3, 4, 4]),
        torch.tensor([2.5, -1.0, float("-inf")]),
    )

    add_biases_reference(logits, biases)

    assert logits.tolist() == [[0, 0, 0, 2.5, 0], [0, 0, 0, 0, float("-inf")]]


def test_penalties_pull_both_signs_down_and_subtract() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, 1.0]])
    penalties = Penalties(
        torch.tensor([0, 0, 0]),
        torch.tensor([0, 1, 2]),
        torch.tensor([1.25, 1.25, 1.25]),
        torch.tensor([0.0, 0.5, 1.0]),
    )

    add_penalties_reference(logits, penalties)

    torch.testing.assert_close(logits, torch.tensor([[1.6, -3.0, 0.6, 1.0]]))
