import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.errors import ConfigError
from splitfuse.gguf_to_hf import convert
from tests.unit.splitfuse.tiny_gguf import LEFT_OUT, make_model, vocabulary, write_gguf


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(source, make_model())
    directory = tmp_path_factory.mktemp("hf")
    convert(source, directory)
    return directory


def test_the_converted_model_computes_what_the_original_does(converted: Path) -> None:
    original = make_model()
    model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32)
    ids = torch.tensor([[1, 7, 9, 200, 3, 4, 5, 6, 11]])  # long enough for rope to matter

    with torch.no_grad():
        assert torch.equal(model(ids).logits, original(ids).logits)


def test_weights_are_stored_as_bf16(converted: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted, dtype="auto")

    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_ropes_base_stands_in_the_config_in_both_spellings(converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text())

    assert config["rope_theta"] == 5000.0
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 5000.0}
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] is True


def test_each_digit_is_a_token_though_a_merge_would_join_them(converted: Path) -> None:
    tokenizer = Tokenizer.from_file(str(converted / "tokenizer.json"))

    assert tokenizer.encode("12345").tokens == ["1", "2", "3", "4", "5"]


def test_merges_apply_and_text_comes_back(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)
    text = "Is the naïve café 42 years old?\n\tYes 🙂"

    assert "Ġthe" in tokenizer.tokenize(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_found_in_text_and_left_out_of_it(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)

    ids = tokenizer.encode("a<|im_end|>")

    assert ids[-1] == tokenizer.eos_token_id == 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a"


def test_a_byte_without_a_symbol_is_dropped_and_nothing_crashes(converted: Path) -> None:
    assert LEFT_OUT not in vocabulary()
    tokenizer = Tokenizer.from_file(str(converted / "tokenizer.json"))

    # U+1F61E is f0 9f 98 9e: its last byte is the one that is missing.
    assert len(tokenizer.encode("\U0001f61e").ids) == 3


def test_the_chat_template_is_kept(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)

    text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)

    assert text == "x"


@pytest.mark.parametrize(
    ("kwargs", "named"), [({"architecture": "mamba"}, "mamba"), ({"pre": "qwen9"}, "qwen9")]
)
def test_a_model_of_another_kind_is_refused_by_name(
    tmp_path: Path, kwargs: dict[str, str], named: str
) -> None:
    write_gguf(tmp_path / "x.gguf", make_model(), **kwargs)
    (tmp_path / "out").mkdir()

    with pytest.raises((ConfigError, KeyError), match=named):
        convert(tmp_path / "x.gguf", tmp_path / "out")
