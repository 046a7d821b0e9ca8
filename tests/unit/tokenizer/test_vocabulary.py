from typing import Any

import pytest

from common.errors import StartupError
from services.tokenizer.vocabulary import DecodingRules, Vocabulary, read_rules
from tests.unit.tokenizer import models


def spell(token: str, rules: DecodingRules) -> bytes:
    return Vocabulary({7: token}.get, frozenset(), rules).piece(7)


def test_a_byte_level_token_is_its_bytes() -> None:
    rules = DecodingRules(byte_level=True)
    assert spell("Ġworld", rules) == b" world"
    assert spell("ĠðŁ", rules) == b" \xf0\x9f"


def test_a_token_added_in_plain_text_is_that_text() -> None:
    assert spell("two words →", DecodingRules(byte_level=True)) == "two words →".encode()


def test_a_byte_fallback_token_is_one_byte() -> None:
    rules = DecodingRules(byte_fallback=True, replacements=(("▁", " "),))
    assert spell("<0xE4>", rules) == b"\xe4"
    assert spell("<0xZZ>", rules) == b"<0xZZ>"
    assert spell("▁<0x", rules) == b" <0x"


def test_the_rules_of_a_llama_tokenizer_are_read_from_its_decoder() -> None:
    decoder = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    assert read_rules(decoder) == DecodingRules(
        byte_fallback=True, replacements=(("▁", " "),), strip_char=" ", max_strip=1
    )


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},  # of each token: not fused
        {"type": "Replace", "pattern": {"Regex": "x+"}, "content": " "},
    ],
)
def test_a_decoder_that_does_not_work_token_by_token_is_refused_at_start(
    decoder: dict[str, Any] | None,
) -> None:
    with pytest.raises(StartupError, match="decoder"):
        read_rules(decoder)


def test_every_byte_has_a_character_in_the_alphabet_of_the_library() -> None:
    tokenizer = models.byte_level()
    rules = DecodingRules(byte_level=True)
    alphabet = [tokenizer.id_to_token(i) for i in range(3, 259)]
    assert {spell(char, rules) for char in alphabet if char} == {bytes([b]) for b in range(256)}
