"""A model's chat template, rendered as transformers renders it.

Templates are programs in jinja that come with a model, so they run in jinja's sandbox and see plain
JSON values only. Beyond jinja they count on what transformers offers them: `raise_exception`,
`strftime_now`, a `tojson` that leaves HTML characters alone, `break` and `continue`, and a
`generation` block, which marks what the model wrote and renders as what is in it.

Rendering does not go through transformers since that takes half a second to import.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn, TypeAlias

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

Message: TypeAlias = Mapping[str, Any]

# Stands behind the message that is to be continued. Its trailing space tells whether the template
# trims messages; the rest is text that nobody writes.
_MARK = "\u2063continue\u2063here\u2063 "
# Under these names clients send what a model thought; templates read the first, some the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """One template with the special tokens of its tokenizer.

    Safe to use from several threads.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """
        Args:
            source: in jinja; compiled when it is first needed.
            special_tokens: variables of the template, such as `bos_token`.
        """
        self._source = source
        self._special_tokens = special_tokens

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] = {},
    ) -> str:
        """Make the text of a conversation.

        Args:
            messages: in JSON values; keys whose value is None are left out.
            tools: JSON schemas.
            add_generation_prompt: end where the model's answer begins.
            continue_final_message: end where the content of the last message does.
            variables: others that the template may read; they go before special tokens.

        Raises:
            jinja2.TemplateError: the template is no jinja, does what the sandbox forbids, or
                refuses the conversation.
            ValueError: there is no message, or the last one cannot be continued.
            Exception: whatever the template's expressions raise for these values.
        """
        if not messages:
            raise ValueError("there are no messages")
        if continue_final_message and add_generation_prompt:
            raise ValueError("add_generation_prompt and continue_final_message exclude each other")
        chat = [_with_reasoning(_without_none(message)) for message in messages]
        final = _mark_final(chat) if continue_final_message else None
        text = self._template.render(
            **{"documents": None, **self._special_tokens, **variables},
            messages=chat,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
        )
        return text if final is None else _cut(text, final)

    @cached_property
    def _template(self) -> jinja2.Template:
        return _environment().from_string(self._source)


def _without_none(message: Message) -> dict[str, Any]:
    return {name: value for name, value in message.items() if value is not None}


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    thoughts = next((message[name] for name in _REASONING if name in message), None)
    if thoughts is None:
        return message
    return {"thinking": thoughts, **message, "reasoning_content": thoughts}


def _mark_final(chat: list[dict[str, Any]]) -> str:
    """Mark the end of the last message; returns its content."""
    content = chat[-1].get("content")
    if not isinstance(content, str):
        raise ValueError("the last message has no text that could be continued")
    chat[-1] = {**chat[-1], "content": content + _MARK}
    return content


def _cut(text: str, final: str) -> str:
    """End a rendered text at the mark behind its last message."""
    mark = _MARK.rstrip()
    if final.strip() not in text or mark not in text:
        raise ValueError("the template leaves out or changes the message that is to be continued")
    end = text.rindex(mark)
    is_trimmed = text[end : end + len(_MARK)] != _MARK
    return text[:end].rstrip() if is_trimmed else text[:end]


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        # In place of jinja's own, whose attributes lead to the interpreter's.
        "dict": _make_dict,
        "namespace": _TemplateNamespace,
    }
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _make_dict(*args: Any, **items: Any) -> dict[Any, Any]:
    return dict(*args, **items)


class _TemplateNamespace(Namespace):
    """Refuses names that the interpreter has a meaning for."""

    def __init__(*args: Any, **attributes: Any) -> None:  # `self` may be an attribute's name
        self, *others = args
        given = dict(*others, **attributes)
        for name in given:
            _check_name(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have an attribute {name!r}")


class _Generation(Extension):
    """`{% generation %}`: what is in it, with variables of its own."""

    tags = {"generation"}  # jinja declares it so  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)
