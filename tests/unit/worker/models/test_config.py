"""config.json in both spellings, and what is wrong with it in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import StartupError
from services.worker.models.config import ModelConfig, read_config

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


def read(tmp_path: Path, **fields: Any) -> ModelConfig:
    content = {name: value for name, value in {**BASE, **fields}.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(content))
    return read_config(tmp_path)


def test_what_is_left_out_or_null_has_its_default(tmp_path: Path) -> None:
    config = read(tmp_path, num_key_value_heads=None, head_dim=None, rope_scaling=None)

    assert config.num_kv_heads == 4
    assert config.head_size == 16
    assert (config.rope.rope_type, config.rope.rope_theta) == ("default", 10_000.0)
    assert not config.tie_word_embeddings


def test_both_spellings_of_rope_mean_the_same(tmp_path: Path) -> None:
    old = read(tmp_path, rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    new = read(tmp_path, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5})
    both = read(tmp_path, rope_theta=5e5, rope_parameters={"rope_type": "default"})

    assert old.rope == new.rope
    assert (old.rope.rope_type, old.rope.rope_theta, old.rope.factor) == ("linear", 5e5, 2.0)
    assert both.rope.rope_theta == 5e5


def test_fields_of_falcon_and_opt_are_called_as_in_llama(tmp_path: Path) -> None:
    falcon = read(
        tmp_path, model_type="falcon", intermediate_size=..., ffn_hidden_size=90, activation="relu"
    )
    opt = read(
        tmp_path, model_type="opt", intermediate_size=..., ffn_dim=90, activation_function="gelu"
    )

    assert (falcon.intermediate_size, falcon.hidden_act) == (90, "relu")
    assert (opt.intermediate_size, opt.hidden_act) == (90, "gelu")


def test_what_is_left_out_has_the_default_of_its_type(tmp_path: Path) -> None:
    falcon = read(tmp_path, model_type="falcon", intermediate_size=..., max_position_embeddings=...)
    opt = read(tmp_path, model_type="opt", intermediate_size=..., ffn_dim=90)
    mixtral = read(tmp_path, model_type="mixtral")

    assert (falcon.intermediate_size, falcon.max_position_embeddings) == (4 * 64, 2048)
    assert (falcon.hidden_act, falcon.tie_word_embeddings) == ("gelu", True)
    assert (opt.hidden_act, opt.word_embed_proj_dim, opt.tie_word_embeddings) == ("relu", 64, True)
    assert (mixtral.rope.rope_theta, mixtral.rms_norm_eps) == (1e6, 1e-5)


def test_dtype_has_two_names(tmp_path: Path) -> None:
    assert read(tmp_path, torch_dtype="float16").dtype == "float16"
    assert read(tmp_path, dtype="bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"hidden_size": ...}, "missing required field `hidden_size`"),
        ({"hidden_size": ..., "model_type": "falcon"}, "missing required field `hidden_size`"),
        ({"model_type": ["opt"], "hidden_size": ...}, "missing required field `hidden_size`"),
        ({"hidden_size": "big"}, r"Expected `int`, got `str` - at `\$.hidden_size`"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, it must be at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, it must be at least 1"),
        ({"num_attention_heads": 65}, "head_dim is 0, it must be at least 1"),
        ({"num_key_value_heads": 3}, "4 attention heads do not divide among 3"),
        ({"quantization_config": {"bits": 4}}, "quantised weights"),
        ({"rope_scaling": "yarn"}, "rope parameters are not an object"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(
    tmp_path: Path, fields: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(StartupError, match=complaint):
        read(tmp_path, **fields)


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"cannot read .*config.json: No such file"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(StartupError, match=r"config.json cannot be used"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_bytes(b"[1]")
    with pytest.raises(StartupError, match=r"config.json cannot be used"):
        read_config(tmp_path)
