"""Rendered like transformers renders it, which is the oracle of all that it can do."""

from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.tokenizer.chat_template import ChatTemplate
from tests.unit.tokenizer import models

SPECIAL_TOKENS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief <&>."},
    {"role": "user", "content": "Größe?\n", "name": None},
    {
        "role": "assistant",
        "content": None,
        "thinking": "hm",
        "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, 2.5, None]}}}],
    },
    {"role": "tool", "content": '{"ok": true}'},
    {"role": "assistant", "content": "  12 cm  "},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<ä>", "parameters": {}}}]

# After those that models come with: what each is there for.
TEMPLATES = {
    "plain": models.CHAT_TEMPLATE.replace("('system', ", "('system', 'tool', "),
    "tools": """{{- bos_token }}
{%- if tools is not none %}
    {{- 'Today is ' + strftime_now('%Y') + '\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
    {%- endfor %}
{%- endif %}
{% for m in messages %}
    {%- if m.tool_calls is defined and m.tool_calls %}
[CALL] {{ m.tool_calls[0].function | tojson(sort_keys=true, separators=(',', ':')) }}
    {%- else %}
[{{ m['role'] }}] {{ m['content'] | trim }}{{ eos_token }}
    {%- endif %}
{% endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}""",
    "thoughts": "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}{% endfor %}",
    "loops": """{% set ns = namespace(count=0, last='') %}
{% for m in messages %}
  {% if m.role == 'tool' %}{% continue %}{% endif %}
  {% set ns.count = ns.count + 1 %}
  {% if loop.index > 3 %}{% break %}{% endif %}
  {{ ns.count }}: {{ dict(role=m.role, at=loop.index0) | tojson }}
{% endfor %}""",
    "generation": """{% set x = 1 %}{% for m in messages %}
{% generation %}{% set x = x + 1 %}{{ x }}{{ m.content }}{% endgeneration %}
{{ x }}{% endfor %}""",
    "macros": """{% macro say(m) %}<{{ m.role | upper }}>{{ caller() }}{% endmacro %}
{% for m in messages %}{% call say(m) %}{{ m.get('content', 'x') }}{% endcall %}
{% endfor %}{{ mood | default('none') }} {{ documents | length if documents else 'no' }}""",
}


def by_transformers(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    tokenizer = models.wrap(models.byte_level(), **SPECIAL_TOKENS)
    tokenizer.chat_template = source
    text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_what_transformers_makes_of_it(
    name: str, prompted: bool, tools: list[dict[str, Any]] | None
) -> None:
    source, template = TEMPLATES[name], ChatTemplate(TEMPLATES[name], SPECIAL_TOKENS)
    variables = {"mood": "calm", "documents": [{"title": "a", "text": "b"}]}
    options: dict[str, Any] = {"tools": tools, "add_generation_prompt": prompted}

    plain = template.render(CONVERSATION, **options)
    with_more = template.render(CONVERSATION, **options, variables=variables)

    assert plain == by_transformers(source, CONVERSATION, **options)
    assert with_more == by_transformers(source, CONVERSATION, **options, **variables)


@pytest.mark.parametrize("content", ["one, two", "  one ", "one\n", "a one a", "[assistant]"])
@pytest.mark.parametrize("name", ["plain", "tools", "macros"])
def test_the_last_message_is_continued_as_transformers_does(name: str, content: str) -> None:
    messages = [*CONVERSATION[:2], {"role": "assistant", "content": content}]

    text = ChatTemplate(TEMPLATES[name], SPECIAL_TOKENS).render(
        messages, continue_final_message=True
    )

    assert text == by_transformers(TEMPLATES[name], messages, continue_final_message=True)


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(st.text(max_size=20), min_size=1, max_size=4),
    name=st.sampled_from(["plain", "tools"]),
)
def test_any_text_goes_through_as_it_does_there(texts: list[str], name: str) -> None:
    messages = [{"role": "user", "content": text} for text in texts]

    text = ChatTemplate(TEMPLATES[name], SPECIAL_TOKENS).render(messages)

    assert text == by_transformers(TEMPLATES[name], messages)


@pytest.mark.parametrize(
    ("source", "final"),
    [
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "gone"),
        ("{{ messages[0].content | upper }}", "changed"),
        ("{{ messages[0].content }}", None),
        ("{{ messages[0].content }}", 5),
    ],
)
def test_a_message_that_cannot_be_continued_is_refused(source: str, final: Any) -> None:
    with pytest.raises(ValueError, match="continued"):
        ChatTemplate(source, {}).render(
            [{"role": "user", "content": final}], continue_final_message=True
        )


def test_no_messages_and_two_ends_at_once_are_refused() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    with pytest.raises(ValueError, match="no messages"):
        template.render([])
    with pytest.raises(ValueError, match="exclude each other"):
        template.render([{"content": "x"}], add_generation_prompt=True, continue_final_message=True)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ dict.__call__.__globals__ }}",
        "{{ dict.mro() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set n = namespace(_secret=1) %}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ raise_exception.__globals__.json }}",
        "{{ strftime_now.__code__.co_names }}",
        "{{ messages.append(1) }}",
        "{% include 'x' %}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ range(10 ** 9) | list }}",
        "{% generation %}",
    ],
)
def test_a_template_stays_in_its_sandbox(source: str) -> None:
    with pytest.raises((jinja2.TemplateError, TypeError, OverflowError)):
        ChatTemplate(source, {}).render([{"role": "user", "content": "x"}])


def test_a_request_s_variables_go_before_special_tokens() -> None:
    template = ChatTemplate("{{ bos_token }}{{ eos_token }}", SPECIAL_TOKENS)

    assert template.render([{"content": "x"}], variables={"bos_token": "!"}) == "!<|im_end|>"
