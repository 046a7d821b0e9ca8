"""Plans in, results out: the same tokens as transformers, however the work is cut and mixed."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from common.config import WorkerOptions
from common.errors import ConfigError, StartupError
from common.messages import Chunk, SamplingParams, StepPlan, StepRejected, StepResult
from services.worker.engine import Engine, run_profile_pass
from tests.support.plans import Planner, announce
from tests.support.tiny_models import VOCAB_SIZE
from tests.unit.worker.conftest import OPTIONS, POISON, MakePair

Pair = tuple[Engine, PreTrainedModel]
ALL_LOGPROBS = SamplingParams(temperature=0.0, logprobs=VOCAB_SIZE)


def random_prompt(length: int, seed: int = 0) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(0, VOCAB_SIZE, length).tolist()
    return tokens


def generate(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


def logprobs_of(model: PreTrainedModel, prompt: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([prompt])).logits[0, -1]
    return logits.log_softmax(-1)


def our_logprobs(planner: Planner, prompt: list[int], chunk: int) -> torch.Tensor:
    sequence = planner.sequence(prompt, range(20, 20 + len(prompt) // 8 + 1), ALL_LOGPROBS)
    while sequence.num_computed_tokens < len(prompt):
        tokens = min(chunk, len(prompt) - sequence.num_computed_tokens)
        sampled = planner.step((sequence, tokens))
    assert sampled[0].logprob is not None
    ours = torch.empty(VOCAB_SIZE)
    for token_id, logprob in sampled[0].logprob.top:
        ours[token_id] = logprob
    return ours


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="grouped queries"),
        pytest.param({"num_key_value_heads": 6}, id="a KV head for each head"),
        pytest.param({"num_key_value_heads": 1}, id="one KV head"),
        pytest.param({"tie_word_embeddings": True}, id="tied embeddings"),
        pytest.param({"attention_bias": True, "mlp_bias": True}, id="biases"),
        pytest.param({"head_dim": 14}, id="heads wider than hidden_size / heads"),
        pytest.param({"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-3}, id="gelu"),
        pytest.param(
            {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, id="rope theta"
        ),
        pytest.param(
            {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}},
            id="linear rope",
        ),
        pytest.param({"rope_parameters": {**LLAMA3, "rope_theta": 5e4}}, id="llama3 rope"),
        pytest.param(
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "rope_theta": 1e4,
                }
            },
            id="yarn rope",
        ),
        pytest.param({"sliding_window": 11}, id="sliding window"),
    ],
)
def test_log_probabilities_equal_transformers(make_pair: MakePair, config: dict[str, Any]) -> None:
    engine, model = make_pair(**config)
    prompt = random_prompt(53)

    ours = our_logprobs(Planner(engine), prompt, chunk=53)

    torch.testing.assert_close(ours, logprobs_of(model, prompt), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 7, 16, 61])
def test_a_prompt_in_chunks_is_the_prompt_at_once(pair: Pair, chunk: int) -> None:
    engine, model = pair
    prompt = random_prompt(61)

    ours = our_logprobs(Planner(engine), prompt, chunk)

    torch.testing.assert_close(ours, logprobs_of(model, prompt), atol=1e-4, rtol=1e-4)


def test_greedy_tokens_equal_transformers_with_permuted_blocks(pair: Pair) -> None:
    engine, model = pair
    planner, prompt = Planner(engine), random_prompt(29)
    sequence = planner.sequence(prompt, [17, 3, 40, 5, 22, 9, 31, 8])

    planner.prefill(sequence, chunk=11)
    for _ in range(30):
        planner.step((sequence, 1))

    assert sequence.output == generate(model, prompt, 31)


def test_decodes_and_chunks_of_many_sequences_share_steps(pair: Pair) -> None:
    engine, model = pair
    planner = Planner(engine)
    prompts = [random_prompt(length, seed=length) for length in (1, 5, 33, 70)]
    sequences = [
        planner.sequence(prompt, range(10 * i, 10 * i + 10)) for i, prompt in enumerate(prompts)
    ]

    for _ in range(30):  # the budget of 3 per prompt keeps prefills and decodes mixed for long
        planner.step(
            *((s, min(3, max(len(s.prompt) - s.num_computed_tokens, 1))) for s in sequences)
        )

    for sequence, prompt in zip(sequences, prompts, strict=True):
        assert len(sequence.output) >= 5
        assert sequence.output == generate(model, prompt, len(sequence.output))


def test_a_plan_may_be_made_before_the_token_it_continues_is_known(pair: Pair) -> None:
    engine, model = pair
    planner, prompt = Planner(engine), random_prompt(13)
    sequence = planner.sequence(prompt, range(8))

    plans = [planner.plan((sequence, 13)), *(planner.plan((sequence, 1)) for _ in range(9))]
    for plan in plans:
        planner.run(plan, sequence)

    assert sequence.output == generate(model, prompt, 10)


def test_a_sequence_reads_blocks_that_another_filled(pair: Pair) -> None:
    engine, model = pair
    planner, prefix = Planner(engine), random_prompt(16)
    first = planner.sequence([*prefix, 7], [0, 1, 2, 3])
    planner.prefill(first, chunk=17)
    second = planner.sequence([*prefix, 9, 11], [0, 1, 6, 7])  # two full blocks are shared
    second.num_computed_tokens = 16

    planner.step((second, 2), (first, 1))
    for _ in range(5):
        planner.step((first, 1), (second, 1))

    assert first.output == generate(model, [*prefix, 7], 7)
    assert second.output == generate(model, [*prefix, 9, 11], 6)


def test_a_sequence_goes_on_elsewhere_from_its_tokens(pair: Pair) -> None:
    engine, model = pair
    prompt = random_prompt(21)
    expected = generate(model, prompt, 12)
    planner = Planner(engine)
    resumed = planner.sequence([*prompt, *expected[:5]], range(30, 36))

    planner.prefill(resumed, chunk=9)
    for _ in range(6):
        planner.step((resumed, 1))

    assert resumed.output == expected[5:]


def test_stale_blocks_full_of_nan_do_not_reach_a_sequence(poisoned_pair: Pair) -> None:
    engine, model = poisoned_pair
    planner, prompt = Planner(engine), random_prompt(10)
    planner.step((planner.sequence([POISON] * 97, range(13)), 96))
    short, long = planner.sequence(prompt, [1, 2, 3]), planner.sequence(prompt * 3, range(4, 12))

    planner.prefill(short, chunk=4)
    planner.prefill(long, chunk=30)
    for _ in range(4):
        planner.step((short, 1), (long, 1))

    assert short.output == generate(model, prompt, 5)
    assert long.output == generate(model, prompt * 3, 5)


def test_logits_that_are_not_finite_are_a_fault_of_their_sequence_only(
    poisoned_pair: Pair,
) -> None:
    engine, model = poisoned_pair
    planner, prompt = Planner(engine), random_prompt(9)
    healthy = planner.sequence(prompt, [1, 2, 3])
    broken = planner.sequence([*prompt[:-1], POISON], [4, 5, 6])
    planner.step((healthy, 8), (broken, 8))

    first = engine.step(planner.plan((healthy, 1), (broken, 1)))
    second = engine.step(planner.plan((broken, 1), (healthy, 1)))  # was already on its way

    for result in (first, second):
        assert isinstance(result, StepResult)
        assert [fault.sequence_id for fault in result.faults] == [broken.sequence_id]
        healthy.output += [token.token_id for token in result.sampled]
    assert healthy.output == generate(model, prompt, 2)


def test_a_rejected_plan_names_its_sequences_and_the_engine_goes_on(pair: Pair) -> None:
    engine, model = pair
    planner, prompt = Planner(engine), random_prompt(6)
    sequence = planner.sequence(prompt, [0, 1, 2])
    planner.prefill(sequence, chunk=6)
    stranger = Chunk(99, 0, 1, b"", sample=True)
    good = Chunk(sequence.sequence_id, 6, 1, b"", sample=True)

    rejected = engine.step(StepPlan(77, (good, stranger)))
    planner.step((sequence, 1))

    assert isinstance(rejected, StepRejected)
    assert (rejected.step_id, rejected.sequence_ids) == (77, (99,))
    assert "unknown" in rejected.reason
    assert sequence.output == generate(model, prompt, 2)


def test_a_plan_without_chunks_only_drops(pair: Pair) -> None:
    engine, _ = pair
    planner = Planner(engine)
    sequence = planner.sequence([5], [0])
    planner.step((sequence, 1))

    result = engine.step(StepPlan(9, (), (), (sequence.sequence_id, 12345)))

    assert isinstance(result, StepResult)
    assert result.sampled == ()
    assert engine.num_sequences == 0


def test_reset_forgets_all_sequences(pair: Pair) -> None:
    engine, _ = pair
    sequence = Planner(engine).sequence([5, 6], [0])
    engine.step(StepPlan(1, (), (announce(sequence),)))

    engine.reset()

    result = engine.step(StepPlan(2, (Chunk(sequence.sequence_id, 0, 2, b"", sample=True),)))
    assert isinstance(result, StepRejected)


def test_the_same_seed_gives_the_same_tokens_in_any_company(pair: Pair) -> None:
    engine, _ = pair
    planner, prompt = Planner(engine), random_prompt(12)
    sampling = SamplingParams(temperature=1.3, top_p=0.9, seed=2**63 + 5)
    alone = planner.sequence(prompt, range(4), sampling)
    planner.prefill(alone, chunk=12)
    for _ in range(12):
        planner.step((alone, 1))

    others = [
        planner.sequence(random_prompt(6, seed=i), range(4 * i, 4 * i + 4), SamplingParams(seed=i))
        for i in range(2, 5)
    ]
    together = planner.sequence(prompt, range(40, 44), sampling)
    planner.prefill(together, chunk=5)
    for _ in range(12):
        planner.step(
            *((s, max(len(s.prompt) - s.num_computed_tokens, 1)) for s in others),
            (
                together,
                1,
            ),
        )

    assert together.output == alone.output
    assert len(set(alone.output)) > 3


def test_step_time_is_measured(pair: Pair) -> None:
    engine, _ = pair
    began = time.perf_counter_ns()

    result = engine.step(StepPlan(1, ()))

    assert isinstance(result, StepResult)
    assert 0 < result.step_ns <= time.perf_counter_ns() - began


def test_others_are_let_in_once_and_only_before_something_is_computed(pair: Pair) -> None:
    engine, _ = pair
    planner = Planner(engine)
    sequence = planner.sequence(random_prompt(6), [0, 1, 2])
    calls: list[str] = []

    engine.step(planner.plan((sequence, 6)), lambda: calls.append("step"))
    engine.step(StepPlan(90, ()), lambda: calls.append("empty"))
    engine.step(StepPlan(91, (Chunk(99, 0, 1, b"", sample=True),)), lambda: calls.append("refused"))

    assert calls == ["step"]


def test_join_says_what_the_worker_can_do(
    tiny_llama: tuple[Path, PreTrainedModel], options: WorkerOptions
) -> None:
    directory, _ = tiny_llama

    join = Engine(directory, options, max_model_len=100).join

    # 8 MiB / (8 tokens * 3 layers * 2 * 2 heads * 10 dims * 4 B); the slot for padding costs 480.
    # Blocks of 8 tokens take tiles of 16 in C, and values are padded to 16 dimensions.
    of_reference, of_cpu = (8 * 2**20 - 480) // 3840, 8 * 2**20 // (16 * 3 * 2 * (10 + 16) * 4)
    assert join.num_blocks == (of_cpu if options.backend == "cpu" else of_reference)
    assert (join.block_size, join.max_model_len, join.vocab_size) == (8, 100, VOCAB_SIZE)
    assert (join.device, join.backend, join.dtype) == ("cpu", options.backend, "float32")
    assert join.blocks_per_group == (16 if options.backend == "cpu" else 1)
    assert join.model == directory.name


def test_bfloat16_agrees_with_float32_within_its_precision(
    tiny_llama: tuple[Path, PreTrainedModel], options: WorkerOptions
) -> None:
    directory, model = tiny_llama
    engine = Engine(directory, options.model_copy(update={"dtype": "bfloat16"}))
    prompt = random_prompt(20)

    ours = our_logprobs(Planner(engine), prompt, chunk=8)

    expected = logprobs_of(model, prompt)
    scale = expected.max() - expected.min()
    assert (ours - expected).abs().max() < 0.05 * scale
    assert (ours - expected).abs().max() > 0


def test_a_length_beyond_the_model_is_refused_with_both_numbers(
    tiny_llama: tuple[Path, PreTrainedModel],
) -> None:
    with pytest.raises(ConfigError, match=r"257.*256"):
        Engine(tiny_llama[0], OPTIONS, max_model_len=257)


def test_a_cache_too_small_for_the_length_is_refused(
    tiny_llama: tuple[Path, PreTrainedModel],
) -> None:
    options = OPTIONS.model_copy(update={"kv_cache_memory": 64 * 1024})

    with pytest.raises(StartupError, match="largest length that fits is 128"):
        Engine(tiny_llama[0], options, max_model_len=200)
    join = Engine(tiny_llama[0], options).join
    assert (join.max_model_len, join.num_blocks * join.block_size) == (256, 128)


def test_no_memory_for_a_cache_at_all_is_refused_without_negative_numbers(
    tiny_llama: tuple[Path, PreTrainedModel],
) -> None:
    options = OPTIONS.model_copy(update={"kv_cache_memory": 0})

    with pytest.raises(StartupError, match=r"more than the 0\.00 GiB .* length that fits is 0:"):
        Engine(tiny_llama[0], options)


def test_the_profile_pass_leaves_an_empty_cache(tiny_llama: tuple[Path, PreTrainedModel]) -> None:
    backend: Any = Engine(tiny_llama[0], OPTIONS)._backend

    run_profile_pass(backend, block_size=8, num_tokens=37)

    assert len(backend._k_caches[0]) == 1  # the slot for padding
