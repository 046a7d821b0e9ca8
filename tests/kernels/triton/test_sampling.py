"""One launch for mixed parameters draws what the reference draws, id for id."""

import numpy as np
import pytest
import torch

from kernels.reference_sampler import (
    add_biases_reference,
    add_penalties_reference,
    sample_reference,
)
from kernels.sampling import Biases, Penalties, Randomness
from kernels.triton.sampler import TritonSampler
from kernels.triton.sampling import sample

VOCAB = 301


def make_logits(num_rows: int, vocab_size: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed))


def make_randomness(
    num_rows: int, vocab_size: int = VOCAB, **settings: float
) -> Randomness[torch.Tensor]:
    def column(name: str, default: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((num_rows,), settings.get(name, default), dtype=dtype)

    generator = torch.Generator().manual_seed(5)
    return Randomness(
        temperature=column("temperature", 1.0, torch.float32),
        top_k=column("top_k", vocab_size, torch.int64),
        top_p=column("top_p", 1.0, torch.float64),
        min_p=column("min_p", 0.0, torch.float32),
        seeds=torch.randint(-(2**63), 2**63 - 1, (num_rows,), generator=generator),
        positions=torch.arange(num_rows) * 977 + 2**33,
    )


def on(device: torch.device, randomness: Randomness[torch.Tensor]) -> Randomness[torch.Tensor]:
    return randomness.map(lambda column: column.to(device))


def run(
    logits: torch.Tensor,
    randomness: Randomness[torch.Tensor],
    device: torch.device,
    biases: Biases[torch.Tensor] | None = None,
    penalties: Penalties[torch.Tensor] | None = None,
) -> torch.Tensor:
    out = torch.full((len(logits),), -99, device=device)
    sample(logits.to(device), on(device, randomness), out, biases, penalties)
    return out.cpu()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 50.0},
        {"top_k": 1},
        {"top_k": 7},
        {"top_p": 0.5},
        {"top_p": 0.01},
        {"top_p": 0.97, "temperature": 2.0},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"temperature": 1.7, "top_k": 60, "top_p": 0.9, "min_p": 0.02},
    ],
    ids=str,
)
@pytest.mark.parametrize("vocab_size", [3, VOCAB])
def test_ids_are_those_of_the_reference(
    vocab_size: int, settings: dict[str, float], device: torch.device
) -> None:
    num_rows = 12
    logits = make_logits(num_rows, vocab_size)
    randomness = make_randomness(num_rows, vocab_size, **settings)
    randomness.top_k.clamp_(max=vocab_size)

    drawn = run(logits, randomness, device)

    assert torch.equal(drawn, sample_reference(logits, randomness))


def test_rows_have_their_own_parameters(device: torch.device) -> None:
    logits = make_logits(10)
    mixed = make_randomness(10, temperature=0.8)
    mixed.top_k[::3], mixed.top_p[1::3], mixed.min_p[::5] = 9, 0.6, 0.1
    mixed.temperature[2], mixed.temperature[6] = 0.0, 1e-4

    drawn = run(logits, mixed, device)

    expected = sample_reference(logits, make_like(mixed, temperature_of={2: 1e-6}))
    assert torch.equal(drawn, expected)


def make_like(
    randomness: Randomness[torch.Tensor], temperature_of: dict[int, float]
) -> Randomness[torch.Tensor]:
    """The reference takes no temperature of 0: the caller takes the largest logit itself."""
    temperature = randomness.temperature.clone()
    for row, value in temperature_of.items():
        temperature[row] = value
    r = randomness
    return Randomness(temperature, r.top_k, r.top_p, r.min_p, r.seeds, r.positions)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_lowest_of_equal_ids_is_greedy_and_a_vocabulary_spans_many_blocks(
    temperature: float, device: torch.device
) -> None:
    logits = make_logits(2, 9_001)
    logits[0, [4500, 8999, 17]] = logits[1, [9000, 8192]] = 1000.0

    drawn = run(logits, make_randomness(2, 9_001, temperature=temperature, top_p=0.9), device)

    if temperature == 0:
        assert drawn.tolist() == [17, 8192]
    else:
        assert drawn[0].item() in {17, 4500, 8999}
        assert drawn[1].item() in {8192, 9000}


def test_tokens_as_likely_as_the_last_one_kept_stay(device: torch.device) -> None:
    logits = torch.log(torch.tensor([[0.4, 0.2, 0.2, 0.2]])).expand(25, 4).contiguous()

    by_count = run(logits, make_randomness(25, 4, top_k=2), device)
    by_mass = run(logits, make_randomness(25, 4, top_p=0.5), device)

    assert set(by_count.tolist()) == set(by_mass.tolist()) == {0, 1, 2, 3}


def test_forbidden_ids_are_never_drawn(device: torch.device) -> None:
    logits = torch.full((20, 40), float("-inf"))
    logits[:, [3, 30]] = torch.tensor([0.0, 1.0])

    drawn = run(logits, make_randomness(20, 40, top_p=0.999), device)

    assert set(drawn.tolist()) == {3, 30}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_rows_without_a_finite_largest_logit_say_so(bad: float, device: torch.device) -> None:
    logits = make_logits(3)
    logits[1] = bad if bad == float("-inf") else logits[1]
    logits[1, 200] = bad

    drawn = run(logits, make_randomness(3, temperature=0.0), device)

    assert drawn.tolist() == [logits[0].argmax(), -1, logits[2].argmax()]


def test_biases_and_penalties_come_before_the_draw(device: torch.device) -> None:
    logits = make_logits(6)
    generator = torch.Generator().manual_seed(3)
    biases = Biases(
        torch.tensor([5, 0, 0, 3, 0]),
        torch.tensor([7, 9, 9, 300, 11]),
        torch.tensor([4.0, -1.0, 9.0, float("-inf"), 2.0]),
    )
    ids = torch.cat([torch.randperm(VOCAB, generator=generator)[:50] for _ in range(2)])
    penalties = Penalties(
        torch.tensor([2, 5]).repeat_interleave(50),
        ids,
        torch.full((100,), 1.4),
        torch.rand(100, generator=generator),
    )
    edited = logits.clone()
    add_biases_reference(edited, biases)
    add_penalties_reference(edited, penalties)
    randomness = make_randomness(6, top_p=0.8)

    drawn = run(
        logits,
        randomness,
        device,
        biases.map(lambda column: column.to(device)),
        penalties.map(lambda column: column.to(device)),
    )

    assert torch.equal(drawn, sample_reference(edited, randomness))


def test_many_draws_are_the_references(device: torch.device) -> None:
    logits = make_logits(1, 64).expand(200, 64).contiguous()
    randomness = make_randomness(200, 64)

    assert torch.equal(run(logits, randomness, device), sample_reference(logits, randomness))


def test_the_sampler_draws_some_rows_and_writes_nothing(device: torch.device) -> None:
    logits, rows = make_logits(7).to(device), np.array([6, 1, 4])
    before = logits.clone()
    randomness = make_randomness(3, top_p=0.9)

    drawn = TritonSampler().sample(logits, rows, randomness.map(torch.Tensor.numpy))

    assert drawn.tolist() == sample_reference(before[rows].cpu(), randomness).tolist()
    assert torch.equal(logits, before)


def test_the_sampler_finds_the_largest_and_says_nan_if_one_is(device: torch.device) -> None:
    logits = make_logits(4)
    logits[0, [300, 5]] = 99.0
    logits[1, 7] = float("nan")
    logits[2] = float("-inf")

    ids, largest = TritonSampler().argmax(logits.to(device))

    assert ids[[0, 3]].tolist() == [5, logits[3].argmax()]
    assert largest[[0, 2]].tolist() == [99.0, float("-inf")]
    assert np.isnan(largest[1])
    assert largest[3] == logits[3].max()


def test_no_rows_are_no_work(device: torch.device) -> None:
    assert run(make_logits(0), make_randomness(0), device).tolist() == []
    assert TritonSampler().argmax(make_logits(0).to(device))[0].tolist() == []
