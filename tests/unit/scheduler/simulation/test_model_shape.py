from pathlib import Path

import pytest

from common.errors import ConfigError
from services.scheduler.simulation.model_shape import parse_model_shape, read_model_shape

LLAMA_70B = {
    "model_type": "llama",
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 32000,
    "rope_scaling": None,
}


def test_llama_70b_has_69_billion_parameters_and_320_kib_of_kv_per_token() -> None:
    shape = parse_model_shape(LLAMA_70B)

    assert shape.num_params == pytest.approx(69.0e9, rel=0.001)
    assert shape.kv_bytes_per_token == 320 * 1024


def test_opt_has_two_matrices_in_its_mlp_and_another_name_for_their_width() -> None:
    shape = parse_model_shape(
        {
            "model_type": "opt",
            "num_hidden_layers": 24,
            "hidden_size": 2048,
            "num_attention_heads": 32,
            "ffn_dim": 8192,
            "vocab_size": 50272,
            "tie_word_embeddings": True,
        }
    )

    assert shape.num_params == pytest.approx(1.31e9, rel=0.01)


def test_falcon_7b_has_one_kv_head() -> None:
    shape = parse_model_shape(
        {
            "model_type": "falcon",
            "num_hidden_layers": 32,
            "hidden_size": 4544,
            "num_attention_heads": 71,
            "multi_query": True,
            "vocab_size": 65024,
        }
    )

    assert (shape.num_kv_heads, shape.head_size) == (1, 64)
    assert shape.intermediate_size == 4 * 4544


def test_a_missing_number_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')

    with pytest.raises(ConfigError, match=r"config\.json cannot be used: .*`num_hidden_layers`"):
        read_model_shape(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*config\.json: No such file"):
        read_model_shape(tmp_path)


def test_a_model_without_heads_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot have this shape"):
        parse_model_shape({**LLAMA_70B, "num_attention_heads": 0, "num_key_value_heads": 0})
