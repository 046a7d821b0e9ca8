"""Architectures that are served, and the refusal of others."""

import math
from typing import Any

import pytest

from common.errors import StartupError
from kernels.program import Linear, Logits, MixtureOfExperts
from services.worker.models.config import ModelConfig
from services.worker.models.registry import FAMILIES, make_model


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


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_weight_of_a_model_has_parts_of_all_its_rows(architecture: str) -> None:
    model = make_model(
        a_config(
            architecture, attention_bias=True, mlp_bias=True, bias=True, word_embed_proj_dim=24
        )
    )

    assert set(model.alternatives) <= set(model.sources) == set(model.program.weights)
    for sources in (model.sources, model.alternatives):
        for name, parts in sources.items():
            shape = model.program.weights[name]
            assert sum(part.num_rows for part in parts) == math.prod(shape[:-1] or shape)
    assert model.program.vocab_size == 50
    assert len(model.program.kv_layers) == 2


@pytest.mark.parametrize("architecture", FAMILIES)
def test_nothing_multiplies_the_residual_stream(architecture: str) -> None:
    """Backends may then keep it in float32; see kernels.program."""
    program = make_model(a_config(architecture, word_embed_proj_dim=24)).program

    multiplied = {
        op.input for op in program.ops if isinstance(op, Linear | MixtureOfExperts | Logits)
    }
    assert multiplied.isdisjoint({"hidden", "last"})


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(StartupError, match=r"GPT2LMHeadModel is not supported; .*LlamaForCausalLM"):
        make_model(a_config("GPT2LMHeadModel"))


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(StartupError, match="hidden_act 'mish' is not supported"):
        make_model(a_config(hidden_act="mish"))
