"""Architectures that are served, and the refusal of others."""

from typing import Any

import pytest

from common.errors import StartupError
from services.worker.models.config import ModelConfig
from services.worker.models.registry import make_model


def a_config(architecture: str = "LlamaForCausalLM", **fields: Any) -> ModelConfig:
    return ModelConfig(
        architectures=(architecture,),
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        **fields,
    )


def test_every_weight_of_a_model_has_parts_of_all_its_rows() -> None:
    model = make_model(a_config(attention_bias=True, mlp_bias=True))

    for name, shape in model.program.weights.items():
        assert sum(part.num_rows for part in model.sources[name]) == shape[0]
    assert model.program.vocab_size == 50
    assert len(model.program.kv_layers) == 2


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(StartupError, match=r"GPT2LMHeadModel is not supported; .*LlamaForCausalLM"):
        make_model(a_config("GPT2LMHeadModel"))


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(StartupError, match="hidden_act 'mish' is not supported"):
        make_model(a_config(hidden_act="mish"))
