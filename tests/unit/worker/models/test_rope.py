"""Frequencies against transformers' own, for every type."""

from typing import Any

import msgspec
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from common.errors import StartupError
from services.worker.models.config import ModelConfig, RopeParameters
from services.worker.models.rope import make_rope


def a_config(**rope: Any) -> ModelConfig:
    return ModelConfig(
        architectures=("LlamaForCausalLM",),
        vocab_size=10,
        hidden_size=128,
        intermediate_size=10,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4096,
        rope=RopeParameters(**rope),
    )


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


@pytest.mark.parametrize(
    "rope",
    [
        {},
        {"rope_theta": 1e6},
        {"rope_type": "linear", "factor": 2.5},
        LLAMA3,
        YARN,
        {**YARN, "attention_factor": 1.5},
        {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        {**YARN, "mscale": 0.7, "mscale_all_dim": 0.5},
    ],
    ids=str,
)
def test_frequencies_and_scale_are_those_of_transformers(rope: dict[str, Any]) -> None:
    theirs = LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=128,
            num_attention_heads=2,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, **rope},
        )
    )

    ours = make_rope(a_config(**rope))

    torch.testing.assert_close(torch.tensor(ours.inv_freq), theirs.inv_freq, rtol=1e-6, atol=0)
    assert ours.scale == pytest.approx(theirs.attention_scaling)


@pytest.mark.parametrize(
    ("rope", "complaint"),
    [
        ({"rope_type": "dynamic"}, "'dynamic' is not supported; supported are default, linear"),
        ({"rope_type": "linear"}, "'linear' needs factor > 0"),
        ({**LLAMA3, "low_freq_factor": None}, "'llama3' needs low_freq_factor > 0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0, it must be more than 1"),
        ({**YARN, "rope_theta": 1.0}, "rope_theta is 1.0, it must be more than 1"),
    ],
)
def test_what_is_not_supported_is_refused(rope: dict[str, Any], complaint: str) -> None:
    with pytest.raises(StartupError, match=complaint):
        make_rope(a_config(**rope))


def test_a_head_of_an_odd_size_is_refused() -> None:
    config = msgspec.structs.replace(a_config(), head_dim=15)

    with pytest.raises(StartupError, match="head_dim is 15, but rotary embeddings turn pairs"):
        make_rope(config)
