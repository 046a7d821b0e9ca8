"""Mixed parameters in one batch; transformers' logits processors as the oracle where it has one."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import MinNewTokensLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor

from common.messages import SampledToken, SamplingParams, SequenceFault
from common.token_ids import pack_ids
from kernels.backend import Sampler
from services.worker.sampler import Sampled, sample
from services.worker.sequence_table import IdBuffer, SequenceState
from tests.support.samplers import make_sampler

VOCAB = 97


@pytest.fixture(params=["reference", "cpu"])
def sampler(request: pytest.FixtureRequest) -> Iterator[Sampler[torch.Tensor]]:
    with make_sampler(request.param, VOCAB) as made:
        yield made


def a_sequence(
    tokens: list[int] | None = None, num_prompt_tokens: int = 3, **sampling: Any
) -> SequenceState:
    tokens = tokens or [1, 2, 3]
    settings: dict[str, Any] = {"temperature": 0.0, **sampling}
    return SequenceState(
        0,
        IdBuffer(pack_ids(tokens)),
        num_prompt_tokens,
        len(tokens) - 1,
        IdBuffer(b""),
        SamplingParams(**settings),
    )


def some_logits(rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def ids(sampled: list[Sampled]) -> list[int]:
    return [s.token_id for s in sampled]


def test_greedy_takes_the_largest_logit_and_writes_nothing(sampler: Sampler[torch.Tensor]) -> None:
    logits = some_logits(5)
    before = logits.clone()

    sampled = sample(logits, [a_sequence() for _ in range(5)], sampler)

    assert ids(sampled) == logits.argmax(-1).tolist()
    assert torch.equal(logits, before)


def test_nothing_is_sampled_for_nobody(sampler: Sampler[torch.Tensor]) -> None:
    assert sample(some_logits(0), [], sampler) == []


def test_a_mixed_batch_is_each_row_alone(sampler: Sampler[torch.Tensor]) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "seed": 4},
        {"temperature": 0.8, "top_p": 0.5, "seed": 5},
        {"temperature": 1.2, "top_k": 3, "seed": 6, "presence_penalty": 1.0},
        {"repetition_penalty": 1.8},
        {"logit_bias": ((7, 50.0),)},
        {"temperature": 1.0, "min_p": 0.3, "seed": 2**64 - 1, "frequency_penalty": -1.0},
        {"min_tokens": 4, "stop_token_ids": tuple(range(50))},
    ]
    logits = some_logits(len(kinds), seed=1)
    before = logits.clone()
    sequences = [a_sequence([5, 6, 7, 7, 8], 2, **kind) for kind in kinds]

    together = sample(logits, sequences, sampler)

    alone = [sample(logits[i : i + 1], [s], sampler)[0] for i, s in enumerate(sequences)]
    assert together == alone
    assert torch.equal(logits, before)


def test_a_draw_depends_on_seed_and_position(sampler: Sampler[torch.Tensor]) -> None:
    logits = torch.zeros(1, VOCAB)

    def draw(num_tokens: int, seed: int) -> int:
        sequence = a_sequence([1] * num_tokens, 1, temperature=1.0, seed=seed)
        return sample(logits, [sequence], sampler)[0].token_id

    assert draw(5, 1) == draw(5, 1)
    assert len({draw(n, 1) for n in range(1, 30)}) > 20
    assert len({draw(5, seed) for seed in range(30)}) > 20


@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
def test_repetition_penalty_is_that_of_transformers(
    penalty: float, sampler: Sampler[torch.Tensor]
) -> None:
    logits = some_logits(1, seed=2)
    tokens = [*logits.topk(6).indices[0].tolist(), 3, 3, 90]
    oracle = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([tokens]), logits.clone())

    sampled = sample(logits, [a_sequence(tokens, 4, repetition_penalty=penalty)], sampler)

    assert ids(sampled) == oracle.argmax(-1).tolist()


def test_presence_and_frequency_penalties_count_output_tokens_only(
    sampler: Sampler[torch.Tensor],
) -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 10], logits[0, 20], logits[0, 30] = 5.0, 4.0, 3.0
    in_prompt = a_sequence([10, 10, 20], 3, presence_penalty=2.0, frequency_penalty=2.0)
    in_output = a_sequence([30, 10, 20], 1, presence_penalty=1.5)
    often = a_sequence([30, 10, 10, 20], 1, frequency_penalty=0.8)

    assert ids(sample(logits, [in_prompt], sampler)) == [10]
    assert ids(sample(logits, [in_output], sampler)) == [10]  # 5 - 1.5 > 3, 4 - 1.5 < 3
    assert ids(sample(logits, [often], sampler)) == [10]  # 5 - 2 * 0.8 = 3.4 > 4 - 0.8
    assert ids(
        sample(logits, [a_sequence([1, 10, 10, 10, 20], 1, frequency_penalty=0.8)], sampler)
    ) == [20]


def test_logit_bias_moves_a_token_up_and_down(sampler: Sampler[torch.Tensor]) -> None:
    logits = some_logits(1)
    best = int(logits.argmax())

    up = sample(logits, [a_sequence(logit_bias=((40, 100.0),))], sampler)
    down = sample(logits, [a_sequence(logit_bias=((best, -100.0),))], sampler)

    assert ids(up) == [40]
    assert ids(down) == [int(logits[0].topk(2).indices[1])]


@pytest.mark.parametrize("num_output_tokens", [0, 1, 2, 3])
def test_stop_tokens_are_masked_until_min_tokens_are_out(
    num_output_tokens: int, sampler: Sampler[torch.Tensor]
) -> None:
    logits = some_logits(1, seed=5)
    stops = logits.topk(3).indices[0].tolist()
    tokens = [1, 2, *range(60, 60 + num_output_tokens)]
    oracle = MinNewTokensLengthLogitsProcessor(2, 2, stops)(torch.tensor([tokens]), logits.clone())

    sampled = sample(
        logits, [a_sequence(tokens, 2, min_tokens=2, stop_token_ids=tuple(stops))], sampler
    )

    assert ids(sampled) == oracle.argmax(-1).tolist()


def test_logprobs_are_those_of_the_model_before_any_penalty(sampler: Sampler[torch.Tensor]) -> None:
    logits = some_logits(2, seed=6)
    expected = logits.log_softmax(-1)
    best = int(logits[1].argmax())

    sampled = sample(
        logits,
        [a_sequence(), a_sequence([best], 1, logprobs=3, repetition_penalty=9.0, temperature=2.0)],
        sampler,
    )

    assert sampled[0].logprob is None
    logprob = sampled[1].logprob
    assert logprob is not None
    assert logprob.token_id == sampled[1].token_id
    assert logprob.logprob == pytest.approx(expected[1, sampled[1].token_id].item(), abs=1e-5)
    values, top = expected[1].topk(3)
    assert [token_id for token_id, _ in logprob.top] == top.tolist()
    assert [value for _, value in logprob.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_zero_logprobs_give_the_sampled_token_only(sampler: Sampler[torch.Tensor]) -> None:
    logprob = sample(some_logits(1), [a_sequence(logprobs=0)], sampler)[0].logprob

    assert logprob is not None
    assert logprob.top == ()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_a_fault_and_the_others_are_not(
    bad: float, sampler: Sampler[torch.Tensor]
) -> None:
    logits = some_logits(3, seed=7)
    logits[1, 50] = bad
    sequences = [a_sequence(temperature=1.0, logprobs=1, seed=s) for s in range(3)]

    sampled = sample(logits, sequences, sampler)

    assert [s.fault is None for s in sampled] == [True, False, True]
    assert sampled[0] == sample(logits[:1], sequences[:1], sampler)[0]
    assert isinstance(sampled[1].message(8), SequenceFault)
    assert isinstance(sampled[2].message(8), SampledToken)


def test_a_top_k_beyond_the_vocabulary_is_no_limit(sampler: Sampler[torch.Tensor]) -> None:
    logits = some_logits(1)

    wide = sample(logits, [a_sequence(temperature=1.0, top_k=10**6, seed=9)], sampler)

    assert wide == sample(logits, [a_sequence(temperature=1.0, seed=9)], sampler)


def test_a_request_that_forbids_every_token_fails_alone(sampler: Sampler[torch.Tensor]) -> None:
    logits = some_logits(4, seed=8)
    everything: dict[str, Any] = {"min_tokens": 5, "stop_token_ids": tuple(range(VOCAB))}
    sequences = [
        a_sequence(temperature=1.0, seed=1),
        a_sequence(**everything),
        a_sequence(temperature=1.0, **everything),
        a_sequence(repetition_penalty=1.5),
    ]

    sampled = sample(logits, sequences, sampler)

    assert [s.fault is None for s in sampled] == [True, False, False, True]
    assert "no token to choose" in str(sampled[2].fault)
    assert sampled[0] == sample(logits[:1], sequences[:1], sampler)[0]
