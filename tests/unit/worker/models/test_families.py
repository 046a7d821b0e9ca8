"""Each family computes what transformers computes, on every backend, however the work is cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import StartupError
from services.worker.engine import Engine
from services.worker.models.config import read_config
from services.worker.models.registry import make_model
from tests.support.plans import Planner
from tests.support.tiny_models import make_tiny, write_tiny_config
from tests.unit.worker.conftest import BACKENDS, OPTIONS
from tests.unit.worker.test_engine import generate, logprobs_of, our_logprobs, random_prompt

FAMILIES = ["llama", "mistral", "qwen2", "mixtral", "falcon", "opt"]
MIXED_WINDOWS = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def make_engine(directory: Path, backend: str, dtype: str = "float32") -> Engine:
    engine = Engine(directory, OPTIONS.model_copy(update={"backend": backend, "dtype": dtype}))
    assert engine.join.backend == backend
    return engine


@pytest.mark.parametrize(
    ("family", "config"),
    [
        pytest.param("qwen2", {}, id="qwen2"),
        pytest.param("qwen2", {"tie_word_embeddings": True}, id="qwen2 tied"),
        pytest.param("qwen2", MIXED_WINDOWS, id="qwen2 with windows on its upper layer"),
        pytest.param("qwen2", {**MIXED_WINDOWS, "layer_types": LAYER_TYPES}, id="qwen2 with types"),
        pytest.param("qwen2", {"sliding_window": 7}, id="qwen2 with a window it does not use"),
        pytest.param("mixtral", {}, id="mixtral"),
        pytest.param("mixtral", {"num_experts_per_tok": 1}, id="mixtral of one expert"),
        pytest.param("mixtral", {"num_experts_per_tok": 5}, id="mixtral of all experts"),
        pytest.param("mixtral", {"fused_experts": True}, id="mixtral in fused tensors"),
        pytest.param("mixtral", {"sliding_window": 7, "head_dim": 14}, id="mixtral with a window"),
        pytest.param("falcon", {}, id="falcon"),
        pytest.param("falcon", {"bias": True, "tie_word_embeddings": False}, id="falcon, biases"),
        pytest.param("falcon", {"ffn_hidden_size": 45, "activation": "gelu_new"}, id="falcon, ffn"),
        pytest.param("opt", {}, id="opt"),
        pytest.param("opt", {"enable_bias": False, "activation_function": "gelu"}, id="opt, gelu"),
        pytest.param("opt", {"tie_word_embeddings": False}, id="opt untied"),
    ],
)
def test_log_probabilities_equal_transformers(
    tmp_path: Path, backend: str, family: str, config: dict[str, Any]
) -> None:
    model = make_tiny(family, tmp_path, **config)
    planner, prompt = Planner(make_engine(tmp_path, backend)), random_prompt(53)

    expected = logprobs_of(model, prompt)

    for chunk in (53, 9):
        ours = our_logprobs(planner, prompt, chunk)
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_of_mixed_lengths_share_steps(tmp_path: Path, backend: str, family: str) -> None:
    model = make_tiny(family, tmp_path)
    planner = Planner(make_engine(tmp_path, backend))
    prompts = [random_prompt(length, seed=length) for length in (1, 5, 33, 40)]
    sequences = [
        planner.sequence(prompt, range(7 * i, 7 * i + 7)) for i, prompt in enumerate(prompts)
    ]

    for _ in range(15):  # chunks of 4 keep prefills and decodes mixed for long
        planner.step(
            *((s, min(4, max(len(s.prompt) - s.num_computed_tokens, 1))) for s in sequences)
        )

    for sequence, prompt in zip(sequences, prompts, strict=True):
        assert len(sequence.output) >= 6
        assert sequence.output == generate(model, prompt, len(sequence.output))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mixtral"])
def test_bfloat16_agrees_with_float32_within_its_precision(
    tmp_path: Path, backend: str, family: str
) -> None:
    """Not Mixtral: where experts score alike, rounding chooses others than float32 does."""
    model = make_tiny(family, tmp_path)
    prompt = random_prompt(20)

    ours = our_logprobs(Planner(make_engine(tmp_path, backend, "bfloat16")), prompt, chunk=8)

    expected = logprobs_of(model, prompt)
    assert (ours - expected).abs().max() < 0.05 * (expected.max() - expected.min())


def test_the_last_position_of_a_table_can_be_reached(tmp_path: Path, backend: str) -> None:
    model = make_tiny("opt", tmp_path, max_position_embeddings=19)
    planner, prompt = Planner(make_engine(tmp_path, backend)), random_prompt(19)

    ours = our_logprobs(planner, prompt, chunk=19)

    torch.testing.assert_close(ours, logprobs_of(model, prompt), atol=1e-4, rtol=1e-4)


def test_an_opt_without_the_prefix_is_the_same_model(tmp_path: Path, backend: str) -> None:
    model = make_tiny("opt", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    planner, prompt = Planner(make_engine(tmp_path, backend)), random_prompt(12)

    ours = our_logprobs(planner, prompt, chunk=12)

    torch.testing.assert_close(ours, logprobs_of(model, prompt), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "config", "complaint"),
    [
        ("falcon", {"alibi": True}, "alibi True is not supported for FalconForCausalLM"),
        ("falcon", {"new_decoder_architecture": True}, "new_decoder_architecture True is not"),
        ("falcon", {"multi_query": False}, "multi_query False is not supported .* only True is"),
        ("falcon", {"parallel_attn": False}, "parallel_attn False is not supported"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before False is not supported"),
        ("opt", {"word_embed_proj_dim": 30}, "word_embed_proj_dim 30 .* only 60 is"),
        ("opt", {"_remove_final_layer_norm": True}, "remove_final_layer_norm True is not"),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine False"),
        ("opt", {"activation_function": "tanh"}, "hidden_act 'tanh' is not supported"),
        ("mixtral", {"num_experts_per_tok": 6}, "num_experts_per_tok is 6, .*num_local_experts 5"),
        ("mixtral", {"sliding_window": 0}, "sliding_window is 0, it must be at least 1"),
        ("qwen2", {"layer_types": ["full_attention"] * 2}, "layer_types has 2 for 3 layers"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "layer_types chunked_attention are"),
    ],
)
def test_what_a_family_does_not_compute_is_refused(
    tmp_path: Path, family: str, config: dict[str, Any], complaint: str
) -> None:
    write_tiny_config(family, tmp_path, **config)

    with pytest.raises(StartupError, match=complaint):
        make_model(read_config(tmp_path))
