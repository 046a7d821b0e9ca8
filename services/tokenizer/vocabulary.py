"""What each token id adds to a text, as bytes. Pure.

A Hugging Face tokenizer describes decoding as a chain of steps over all tokens of a text (the
`decoder` of tokenizer.json). For the chains that language models use, that work splits per token:
every token contributes fixed bytes, wherever it stands, except that the first token or the first
characters of a text may lose a space. This file reduces a chain to exactly that, so that text can
be decoded token by token in constant time (see `detokenize.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import StartupError

# A byte-fallback token is spelled <0xE4>: one raw byte of a character that has no token.
_BYTE_TOKEN_LENGTH = 6


@dataclass(frozen=True, slots=True)
class DecodingRules:
    """A decoder chain, reduced to what it does to one token and to the start of a text."""

    byte_level: bool = False  # tokens are written in the 256-character byte alphabet
    byte_fallback: bool = False  # <0xE4> is one raw byte
    replacements: tuple[tuple[str, str], ...] = ()  # (pattern, content), in order
    first_token_drops: str = ""  # a character that the first token of a text loses
    strip_char: str = ""  # a text loses up to `max_strip` of these at its start
    max_strip: int = 0


def read_rules(decoder: Mapping[str, Any] | None) -> DecodingRules:
    """Reduce the `decoder` of a tokenizer.json.

    Raises:
        StartupError: the chain has a step whose work does not split per token.
    """
    steps = _steps(decoder)
    values: dict[str, Any] = {"replacements": ()}
    is_fused = False  # behind Fuse, a step sees the text, not the tokens
    for step in steps:
        match step:
            case {"type": "ByteLevel"} if len(steps) == 1:
                values["byte_level"] = True
            case {
                "type": "Replace",
                "pattern": {"String": str(pattern)},
                "content": str(content),
            } if not is_fused or len(pattern) == 1:
                values["replacements"] += ((pattern, content),)
            case {"type": "Metaspace", "replacement": str(mark)} if not is_fused:
                if step.get("prepend_scheme", "always") != "never":
                    values["first_token_drops"] = mark
                values["replacements"] += ((mark, " "),)
            case {"type": "ByteFallback"} if not is_fused:
                values["byte_fallback"] = True
            case {"type": "Fuse"}:
                is_fused = True
            case {"type": "Strip", "content": str(char), "start": int(start), "stop": 0} if (
                is_fused
            ):
                values |= {"strip_char": char, "max_strip": start}
            case _:
                raise StartupError(
                    f"tokenizer.json: decoder step {step} is not supported; supported are "
                    "ByteLevel, Metaspace and [Replace, ByteFallback, Fuse, Strip at the start]"
                )
    return DecodingRules(**values)


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        raise StartupError("tokenizer.json has no decoder: token ids cannot be turned into text")
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [step for nested in decoder["decoders"] for step in _steps(nested)]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte: itself if printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }


_BYTE_OF_CHAR = _byte_alphabet()


class Vocabulary:
    """The pieces of text that token ids stand for.

    Args:
        id_to_token: spelling of an id in the vocabulary; None for an id that has no token (models
            pad their vocabulary), which adds nothing to a text.
        special_ids: ids that `skip_special_tokens` hides.
        rules: how spellings become text.
    """

    def __init__(
        self,
        id_to_token: Callable[[int], str | None],
        special_ids: frozenset[int],
        rules: DecodingRules,
    ) -> None:
        self.special_ids = special_ids
        self.rules = rules
        self._id_to_token = id_to_token
        self._pieces: dict[int, bytes] = {}

    def piece(self, token_id: int) -> bytes:
        """Bytes that the token adds behind others; may be half a character."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._spell(token_id, drop="")
        return piece

    def first_piece(self, token_id: int) -> bytes:
        """Bytes that the token adds when it is the first of a text."""
        if not self.rules.first_token_drops:
            return self.piece(token_id)
        return self._spell(token_id, drop=self.rules.first_token_drops)

    def _spell(self, token_id: int, drop: str) -> bytes:
        token = self._id_to_token(token_id) if token_id >= 0 else None
        if token is None:
            return b""
        if self.rules.byte_level:
            return _from_byte_alphabet(token)
        if self.rules.byte_fallback and (byte := _byte_of(token)) is not None:
            return bytes([byte])
        if drop:
            token = token.replace(drop, "")
        for pattern, content in self.rules.replacements:
            token = token.replace(pattern, content)
        return token.encode()


def _from_byte_alphabet(token: str) -> bytes:
    """A token that was added by hand may be spelled in plain text instead."""
    try:
        return bytes([_BYTE_OF_CHAR[char] for char in token])
    except KeyError:
        return token.encode()


def _byte_of(token: str) -> int | None:
    if len(token) != _BYTE_TOKEN_LENGTH or not (token.startswith("<0x") and token.endswith(">")):
        return None
    try:
        return int(token[3:5], 16)
    except ValueError:
        return None
