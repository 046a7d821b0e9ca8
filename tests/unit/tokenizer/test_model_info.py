from pathlib import Path
from typing import Any

import pytest

from common.errors import StartupError
from services.tokenizer.model_info import ModelInfo, read_model_info
from tests.unit.tokenizer.models import write_json


def read(
    directory: Path,
    config: dict[str, Any],
    generation: dict[str, Any] | None = None,
    **options: Any,
) -> ModelInfo:
    write_json(directory / "config.json", config)
    if generation is not None:
        write_json(directory / "generation_config.json", generation)
    arguments: dict[str, Any] = {"name": "m", "max_token_id": 9, "tokenizer_eos_id": None}
    arguments |= options
    return read_model_info(directory, **arguments)


def test_limits_come_from_config_json(tmp_path: Path) -> None:
    info = read(tmp_path, {"vocab_size": 49152, "max_position_embeddings": 8192})
    assert (info.vocab_size, info.max_model_len) == (49152, 8192)


def test_a_given_max_model_len_replaces_the_models(tmp_path: Path) -> None:
    assert read(tmp_path, {"max_position_embeddings": 8192}, max_model_len=512).max_model_len == 512


def test_limits_of_a_text_model_inside_a_larger_one_are_found(tmp_path: Path) -> None:
    assert read(tmp_path, {"text_config": {"vocab_size": 7}}).vocab_size == 7


@pytest.mark.parametrize(
    ("config_eos", "generation", "tokenizer_eos", "expected"),
    [
        (1, None, None, (1,)),
        (1, {"eos_token_id": [5, 6]}, None, (5, 6)),
        (1, {"eos_token_id": 5}, 6, (5, 6)),
        ([1, 2], {}, 2, (1, 2)),
        (None, {}, None, ()),
    ],
)
def test_end_tokens_are_the_generation_configs_and_the_tokenizers(
    tmp_path: Path,
    config_eos: object,
    generation: dict[str, Any] | None,
    tokenizer_eos: int | None,
    expected: tuple[int, ...],
) -> None:
    info = read(tmp_path, {"eos_token_id": config_eos}, generation, tokenizer_eos_id=tokenizer_eos)
    assert info.eos_ids == expected


def test_sampling_defaults_bear_our_names(tmp_path: Path) -> None:
    generation = {"temperature": 1, "top_k": -1, "max_new_tokens": 64, "do_sample": True}
    assert read(tmp_path, {}, generation).sampling_defaults == {
        "temperature": 1.0,
        "top_k": 0,
        "max_tokens": 64,
    }


def test_sampling_defaults_can_be_left_out_but_end_tokens_stay(tmp_path: Path) -> None:
    generation = {"temperature": 0.5, "eos_token_id": 4}
    info = read(tmp_path, {}, generation, with_sampling_defaults=False)
    assert (info.sampling_defaults, info.eos_ids) == ({}, (4,))


@pytest.mark.parametrize(
    "generation", [{"top_p": "high"}, {"top_p": 1.5}, {"temperature": True}, {"top_k": 0.5}]
)
def test_a_default_that_cannot_be_used_is_named_at_start(
    tmp_path: Path, generation: dict[str, Any]
) -> None:
    with pytest.raises(StartupError, match=f"generation_config.json: {next(iter(generation))} is"):
        read(tmp_path, {}, generation)


def test_unreadable_files_are_named_at_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"config\.json"):
        read_model_info(tmp_path, name="m", max_token_id=1, tokenizer_eos_id=None)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(StartupError, match=r"config\.json"):
        read_model_info(tmp_path, name="m", max_token_id=1, tokenizer_eos_id=None)
    with pytest.raises(StartupError, match="eos_token_id is 'x'"):
        read(tmp_path, {"eos_token_id": "x"})
