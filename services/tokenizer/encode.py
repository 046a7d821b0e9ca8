"""Prompts → token ids, with the tokenizer and the chat template of a model."""

from collections.abc import Iterable
from typing import Any, TypeVar

import jinja2
import msgspec
from tokenizers import Tokenizer

from common.errors import FailureCode, RequestError
from common.messages import ChatPrompt, Prompt, TextPrompt, TokenPrompt
from common.token_ids import pack_ids
from services.tokenizer.chat_template import ChatTemplate
from services.tokenizer.model_tokenizer import DEFAULT, ModelTokenizer
from services.tokenizer.vocabulary import DecodingRules, Vocabulary, read_rules

# A library's complaint may quote the whole conversation.
_MAX_REASON_CHARS = 500
# The name of the template for conversations with tools, where a model has one of its own for them.
_WITH_TOOLS = "tool_use"
# What the request says elsewhere, or the server decides.
_RESERVED_VARIABLES = frozenset(
    {
        *("messages", "conversation", "tools", "chat_template", "tokenize"),
        *("add_generation_prompt", "continue_final_message"),
    }
)


class Encoder:
    """Turns prompts into ids. Safe to use from several threads.

    Attributes:
        vocabulary: pieces of the ids, for the way back.
        max_token_id: the largest id that encoding can give.
        eos_id: the tokenizer's own end token.

    Raises:
        StartupError: the tokenizer decodes in a way that is not supported.
    """

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        backend = tokenizer.backend
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._templates = {
            name: ChatTemplate(source, tokenizer.special_tokens)
            for name, source in tokenizer.chat_templates.items()
        }
        description = msgspec.json.decode(backend.to_str())
        rules = read_rules(description["decoder"])
        token_ids = backend.get_vocab(with_added_tokens=True)
        self._max_chars_per_token = _max_chars_per_token(
            token_ids, rules, description["normalizer"]
        )
        self.vocabulary = Vocabulary(backend.id_to_token, _special_ids(backend), rules)
        self.max_token_id: int = max(token_ids.values())
        self.eos_id = tokenizer.eos_id

    def encode(self, prompt: Prompt, max_model_len: int | None = None) -> bytes:
        """Packed ids of a prompt; ids that the client gave are passed on unchecked.

        Args:
            prompt: as the gateway sent it.
            max_model_len: text that must have more tokens than this is refused unencoded, so that
                a few enormous prompts cannot occupy the encoder for minutes.

        Raises:
            RequestError: the prompt is empty or enormous, or is a chat that the template cannot
                render.
        """
        param = "messages" if isinstance(prompt, ChatPrompt) else "prompt"
        match prompt:
            case TokenPrompt(token_ids):
                packed = token_ids
            case TextPrompt(text):
                self._check_size(text, max_model_len, param)
                packed = self._encode_text(text, add_special_tokens=True) if text else b""
            case ChatPrompt():
                text = self.render(prompt)
                self._check_size(text, max_model_len, param)
                # The template writes special tokens itself.
                packed = self._encode_text(text, add_special_tokens=False)
        if not packed:
            raise RequestError(
                FailureCode.INVALID_REQUEST, "The prompt is empty: it has no tokens.", param
            )
        return packed

    def render(self, prompt: ChatPrompt) -> str:
        """The text that the chat template makes of a conversation.

        Raises:
            RequestError: there is no template, or it cannot render this conversation.
        """
        messages = _parse(prompt.messages, list[dict[str, Any]], "messages")
        tools = (
            None if prompt.tools is None else _parse(prompt.tools, list[dict[str, Any]], "tools")
        )
        template = self._template(has_tools=tools is not None)
        try:
            return template.render(
                [_with_text_content(message) for message in messages],
                tools=tools,
                add_generation_prompt=prompt.add_generation_prompt,
                continue_final_message=prompt.continue_final_message,
                variables=_template_variables(prompt),
            )
        except jinja2.TemplateError as error:
            raise _unrenderable(error.message or type(error).__name__) from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # What the template's expressions do with values that they were not written for.
            raise _unrenderable(f"{type(error).__name__}: {error}") from None

    def _template(self, has_tools: bool) -> ChatTemplate:
        names = (_WITH_TOOLS, DEFAULT) if has_tools else (DEFAULT,)
        for name in names:
            if name in self._templates:
                return self._templates[name]
        raise RequestError(
            FailureCode.INVALID_REQUEST,
            "This model has no chat template. Use /v1/completions, or start the tokenizer with "
            "--chat-template FILE.",
            "messages",
        )

    def _check_size(self, text: str, max_model_len: int | None, param: str) -> None:
        if max_model_len is None or self._max_chars_per_token is None:
            return
        max_chars = max_model_len * self._max_chars_per_token
        if len(text) <= max_chars or (num_chars := _num_visible(text)) <= max_chars:
            return
        num_tokens = num_chars // self._max_chars_per_token
        raise RequestError(
            FailureCode.CONTEXT_LENGTH_EXCEEDED,
            f"This model's maximum context length is {max_model_len} tokens, but the prompt has at "
            f"least {num_tokens} tokens.",
            param,
        )

    def _encode_text(self, text: str, *, add_special_tokens: bool) -> bytes:
        return pack_ids(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)


def _special_ids(backend: Tokenizer) -> frozenset[int]:
    added = backend.get_added_tokens_decoder()
    return frozenset(token_id for token_id, token in added.items() if token.special)


def _num_visible(text: str) -> int:
    """Characters that are not white space; counted in slices to let other threads run."""
    slices = (text[start : start + 65_536] for start in range(0, len(text), 65_536))
    return sum(len(word) for piece in slices for word in piece.split())


# Canonical composition makes one character of at most four.
_SHRINKS_TO = {"Prepend": 1, "Replace": 1, "NFC": 4}


def _max_chars_per_token(
    tokens: Iterable[str], rules: DecodingRules, normalizer: dict[str, Any] | None
) -> int | None:
    """How many characters of a text, white space not counted, one token can stand for at most.

    Added tokens may swallow any amount of white space around them; nothing swallows more, unless a
    normalizer does or unknown characters are fused: then None.
    """
    if not (rules.byte_level or rules.byte_fallback):
        return None
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    max_chars = max(map(len, tokens))
    for step in steps:
        if step["type"] not in _SHRINKS_TO:
            return None
        max_chars *= _SHRINKS_TO[step["type"]]
    return max_chars


def _template_variables(prompt: ChatPrompt) -> dict[str, Any]:
    variables = _parse(prompt.chat_template_kwargs, dict[str, Any], "chat_template_kwargs")
    if reserved := sorted(_RESERVED_VARIABLES & variables.keys()):
        raise RequestError(
            FailureCode.INVALID_REQUEST,
            f"chat_template_kwargs may not set {', '.join(reserved)}.",
            "chat_template_kwargs",
        )
    return variables


_Json = TypeVar("_Json")


def _parse(json: bytes, expected: type[_Json], param: str) -> _Json:
    try:
        return msgspec.json.decode(json, type=expected)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(FailureCode.INVALID_REQUEST, f"{param}: {error}.", param) from None


def _with_text_content(message: dict[str, Any]) -> dict[str, Any]:
    """Join a list of text parts by newlines, as vLLM does: most templates expect a string."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return message
    texts = []
    for part in parts:
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case _:
                kind = part.get("type") if isinstance(part, dict) else part
                raise RequestError(
                    FailureCode.INVALID_REQUEST,
                    f"A message has a content part of type {kind!r}, but this model takes text "
                    'only: {"type": "text", "text": "..."}.',
                    "messages",
                )
    return {**message, "content": "\n".join(texts)}


def _unrenderable(reason: str) -> RequestError:
    return RequestError(
        FailureCode.INVALID_REQUEST,
        f"The chat template cannot render these messages: {reason[:_MAX_REASON_CHARS]}",
        "messages",
    )
