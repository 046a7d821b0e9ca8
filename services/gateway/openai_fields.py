"""Types of single fields in OpenAI's request bodies, with their checks. Pure.

Each is a pydantic type: what it accepts is what the field may be, and its errors say what is wrong
in words that the client can read.
"""

import reprlib
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError

from common.messages import TextPrompt, TokenPrompt
from common.token_ids import pack_ids

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256  # each; every character costs a state of the tokenizer's automaton
INT32_MAX = 2**31 - 1


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _is_token_list(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _token_prompt(ids: Sequence[int]) -> TokenPrompt:
    wrong = next((i for i in ids if not 0 <= i <= INT32_MAX), None)
    if wrong is not None:
        raise PydanticCustomError(
            "token_id",
            "token id {id} is not in 0..{max}",
            {"id": reprlib.repr(wrong), "max": INT32_MAX},
        )
    return TokenPrompt(pack_ids(ids))


def _one_prompt(value: Any) -> TextPrompt | TokenPrompt:
    if isinstance(value, str):
        if not value:
            raise PydanticCustomError("empty_prompt", "the prompt is empty")
        return TextPrompt(value)
    if not value:
        raise PydanticCustomError("empty_prompt", "the prompt has no tokens")
    return _token_prompt(value)


def _parse_prompts(value: Any) -> tuple[TextPrompt | TokenPrompt, ...]:
    """A string, a list of strings, a list of token ids, or a list of lists of token ids."""
    if isinstance(value, str):
        return (_one_prompt(value),)
    if isinstance(value, list):
        if not value:
            raise PydanticCustomError("empty_prompt", "the list of prompts is empty")
        if _is_token_list(value):
            return (_token_prompt(value),)
        if all(isinstance(item, str) for item in value) or all(map(_is_token_list, value)):
            return tuple(_one_prompt(item) for item in value)
    raise PydanticCustomError(
        "prompt_type",
        "must be a string, a list of strings, a list of token ids or a list of lists of token ids",
    )


def _parse_logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, dict):
        raise PydanticCustomError("logit_bias", "must be an object from token ids to numbers")
    pairs = []
    for key, bias in value.items():
        if not key.isascii() or not key.isdecimal() or len(key) > 10 or int(key) > INT32_MAX:
            raise PydanticCustomError(
                "logit_bias", "key {key} is not a token id", {"key": reprlib.repr(key)}
            )
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise PydanticCustomError(
                "logit_bias",
                "bias of token {key} must be a number in -100..100",
                {"key": key},
            )
        pairs.append((int(key), float(bias)))
    return tuple(sorted(pairs))


def _check_content(value: Any) -> str | list[dict[str, Any]] | None:
    """A string, null, or a list of parts that are all text."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise PydanticCustomError("content", "must be a string or a list of content parts")
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise PydanticCustomError(
                "content", "part {index} must be an object with a type", {"index": index}
            )
        if kind != "text":
            raise PydanticCustomError(
                "content",
                "part {index} has type {kind}; only text is supported",
                {"index": index, "kind": reprlib.repr(kind)},
            )
        if not isinstance(part.get("text"), str):
            raise PydanticCustomError(
                "content", "part {index} must have a text that is a string", {"index": index}
            )
    return value


Count = Annotated[int, Field(ge=1, le=INT32_MAX)]
# Lists fail at the first wrong item: a body of millions of them would make an error of gigabytes.
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=INT32_MAX)]], Field(fail_fast=True)]
StopStrings = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]],
    Field(max_length=MAX_STOP_STRINGS, fail_fast=True),
    BeforeValidator(_as_list),
]
LogitBias = Annotated[tuple[tuple[int, float], ...], PlainValidator(_parse_logit_bias)]
Prompts = Annotated[tuple[TextPrompt | TokenPrompt, ...], PlainValidator(_parse_prompts)]
Content = Annotated[str | list[dict[str, Any]] | None, PlainValidator(_check_content)]
