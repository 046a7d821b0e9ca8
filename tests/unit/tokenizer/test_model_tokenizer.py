"""Directories as models come in; transformers reads each as well, and is right."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from common.errors import ConfigError, StartupError
from services.tokenizer import model_tokenizer
from services.tokenizer.model_tokenizer import load_tokenizer
from tests.unit.tokenizer import models

IM_END = {"content": "<|im_end|>", "special": True, "normalized": False}
FLAGS = {"lstrip": False, "rstrip": False, "single_word": False}
TOKENS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


def directory(path: Path, config: dict[str, Any] | None, kind: str = "byte level") -> Path:
    """A tokenizer.json, and a configuration if there is one."""
    models.KINDS[kind]().save(str(path / "tokenizer.json"))
    if config is not None:
        models.write_json(path / "tokenizer_config.json", config)
    return path


def assert_read_as_by_transformers(path: Path) -> None:
    ours = load_tokenizer(path)
    theirs = PreTrainedTokenizerFast.from_pretrained(path)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.eos_id == theirs.eos_token_id
    assert ours.backend.get_vocab() == theirs.get_vocab()
    for text in (*models.TEXTS, "<|im_start|>user <tool>two words<|new|>"):
        for with_special in (True, False):
            ids = ours.backend.encode(text, add_special_tokens=with_special).ids
            assert ids == theirs(text, add_special_tokens=with_special)["input_ids"]
    known = {token.content for token in ours.backend.get_added_tokens_decoder().values()}
    assert known == {str(token) for token in theirs.added_tokens_decoder.values()}


SAID_BY_TOKENIZER_JSON: dict[str, dict[str, Any] | None] = {
    "no configuration": None,
    "an empty one": {},
    "named tokens": {**TOKENS, "pad_token": "<|endoftext|>", "unk_token": None},
    "tokens written out": {"eos_token": {"__type": "AddedToken", **IM_END, **FLAGS}},
    "a beginning that is not added": {**TOKENS, "add_bos_token": True, "add_eos_token": True},
    "a class of its own": {**TOKENS, "tokenizer_class": "LlamaTokenizer", "legacy": False},
    "added tokens": {**TOKENS, "added_tokens_decoder": {"2": {**IM_END, **FLAGS}}},
    "extra tokens": {**TOKENS, "additional_special_tokens": ["<|im_start|>"]},
}
SAID_ELSEWHERE: dict[str, dict[str, Any]] = {
    "a new end": {"eos_token": "<|new|>"},
    "a new extra token": {**TOKENS, "extra_special_tokens": ["<|new|>"]},
    "an old spelling of it": {**TOKENS, "additional_special_tokens": ["<|new|>"]},
    "tokens with names": {**TOKENS, "extra_special_tokens": {"image_token": "<|im_start|>"}},
    "new tokens with names": {**TOKENS, "extra_special_tokens": {"image_token": "<|new|>"}},
    "a token of one model": {**TOKENS, "image_token": "<tool>"},
    "a new token of one model": {**TOKENS, "audio_token": "<|new|>"},
    "an added token": {"added_tokens_decoder": {"600": {**IM_END, **FLAGS, "content": "<|new|>"}}},
    "an added token with other flags": {
        "added_tokens_decoder": {"2": {**IM_END, **FLAGS, "lstrip": True}}
    },
    "special tokens are split": {**TOKENS, "split_special_tokens": True},
}


@pytest.mark.parametrize("kind", models.KINDS)
@pytest.mark.parametrize("name", SAID_BY_TOKENIZER_JSON)
def test_a_tokenizer_json_that_says_all_is_read_without_transformers(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SAID_BY_TOKENIZER_JSON[name]
    if kind != "byte level":  # which has no such tokens
        config = config and {"eos_token": "</s>", "add_eos_token": True}
    directory(tmp_path, config, kind)
    monkeypatch.delattr(model_tokenizer, "_read_with_transformers")

    assert_read_as_by_transformers(tmp_path)


@pytest.mark.parametrize("name", SAID_ELSEWHERE)
def test_what_another_file_changes_is_read_by_transformers(name: str, tmp_path: Path) -> None:
    assert_read_as_by_transformers(directory(tmp_path, SAID_ELSEWHERE[name]))


@pytest.mark.parametrize("eos", ["<|im_end|>", {**IM_END, **FLAGS}, "<|new|>"], ids=str)
def test_special_tokens_may_be_in_a_file_of_their_own(eos: Any, tmp_path: Path) -> None:
    directory(tmp_path, {"eos_token": "<|endoftext|>"})
    models.write_json(tmp_path / "special_tokens_map.json", {"eos_token": eos})

    assert_read_as_by_transformers(tmp_path)


def test_added_tokens_may_be_in_a_file_of_their_own(tmp_path: Path) -> None:
    directory(tmp_path, TOKENS)
    models.write_json(tmp_path / "added_tokens.json", {"<|new|>": 422})

    assert_read_as_by_transformers(tmp_path)


def test_padding_names_its_token(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(models.byte_level().to_str())
    tokenizer.enable_padding(pad_id=0, pad_token="<|endoftext|>")
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    assert load_tokenizer(tmp_path).special_tokens == {"pad_token": "<|endoftext|>"}
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path).pad_token == "<|endoftext|>"


def test_the_default_model_is_read_as_by_transformers(default_model: Path) -> None:
    assert_read_as_by_transformers(default_model)


def test_chat_templates_are_found_where_transformers_finds_them(tmp_path: Path) -> None:
    def templates() -> Any:
        theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path).chat_template
        ours = load_tokenizer(tmp_path).chat_templates
        assert ours == ({"default": theirs} if isinstance(theirs, str) else theirs)
        return ours

    directory(tmp_path, {"chat_template": "one"})
    assert templates() == {"default": "one"}
    several = [{"name": n, "template": n} for n in ("default", "tool_use")]
    directory(tmp_path, {"chat_template": several})
    assert templates() == {"default": "default", "tool_use": "tool_use"}
    (tmp_path / "chat_template.jinja").write_text("file")
    assert templates() == {"default": "file"}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    assert templates() == {"default": "file", "tool_use": "with tools"}


def test_a_model_without_a_template_has_none(tmp_path: Path) -> None:
    assert load_tokenizer(directory(tmp_path, TOKENS)).chat_templates == {}


def test_a_template_file_replaces_all_others(tmp_path: Path) -> None:
    directory(tmp_path, {**TOKENS, "chat_template": "one"})
    (tmp_path / "mine.jinja").write_text("mine")

    assert load_tokenizer(tmp_path, tmp_path / "mine.jinja").chat_templates == {"default": "mine"}
    with pytest.raises(ConfigError, match=r"--chat-template .*none.jinja"):
        load_tokenizer(tmp_path, tmp_path / "none.jinja")


@pytest.mark.parametrize(
    "config",
    [
        b"[]",
        b"{",
        b"\xff",
        b'{"eos_token": 5}',
        b'{"added_tokens_decoder": {"x": {}}}',
        b'{"chat_template": 5}',
    ],
)
def test_a_broken_configuration_is_named_at_start(config: bytes, tmp_path: Path) -> None:
    directory(tmp_path, None)
    (tmp_path / "tokenizer_config.json").write_bytes(config)

    with pytest.raises(StartupError, match="no usable tokenizer"):
        load_tokenizer(tmp_path)


def test_a_directory_without_a_tokenizer_is_named_at_start(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))

    with pytest.raises(StartupError, match="no usable tokenizer"):
        load_tokenizer(tmp_path)
