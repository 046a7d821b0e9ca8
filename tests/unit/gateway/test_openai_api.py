import json
import tracemalloc
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import FailureCode, RequestError
from common.messages import ChatPrompt, SamplingParams, TextPrompt, TokenPrompt
from common.token_ids import unpack_ids
from services.gateway.openai_api import (
    WHOLE_ANSWER_INTERVAL,
    Generation,
    derive_seed,
    parse_chat,
    parse_completion,
    tokenize_requests,
)

USER = {"role": "user", "content": "hi"}


def completion(**fields: Any) -> Generation:
    return parse_completion(json.dumps({"model": "tiny", "prompt": "hi"} | fields).encode())


def chat(**fields: Any) -> Generation:
    return parse_chat(json.dumps({"model": "tiny", "messages": [USER]} | fields).encode())


def refusal(call: Any, *args: Any, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        call(*args, **fields)
    assert caught.value.code is FailureCode.INVALID_REQUEST
    return caught.value


# ── bodies that are no requests ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "mentions"),
    [
        (b"", "not valid JSON"),
        (b'{"model": "tiny"', "not valid JSON"),
        (b'{"model": "tiny"} x', "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b'{"model": "tiny", "prompt": "\xff\xfe"}', "not valid UTF-8"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', "not valid JSON"),
        (b'{"model": "tiny", "prompt": "x", "temperature": NaN}', "not valid JSON"),
        (b'{"model": "tiny", "prompt": "x", "top_p": Infinity}', "not valid JSON"),
        (b'{"model": "tiny", "prompt": "x", "foo": -Infinity}', "not valid JSON"),
        (b'{"model": "tiny", "prompt": "x", "top_p": 1e999}', "not valid JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": ' + b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused(body: bytes, mentions: str) -> None:
    assert mentions in refusal(parse_completion, body).message


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    for parse in (parse_chat, parse_completion):
        with suppress(RequestError):
            parse(body)


# ── single fields ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("field", "value", "mentions"),
    [
        ("model", 7, "string"),
        ("model", "", "at least 1"),
        ("temperature", -0.1, "0, got -0.1"),
        ("temperature", 2.01, "2, got 2.01"),
        ("temperature", "1", "number"),
        ("temperature", True, "number"),
        ("top_p", 0, "greater than 0"),
        ("top_p", 1.5, "1, got 1.5"),
        ("top_k", -2, "-1, got -2"),
        ("top_k", 2.0, "integer"),
        ("min_p", 1.1, "1"),
        ("repetition_penalty", 0, "greater than 0"),
        ("repetition_penalty", 2.5, "2"),
        ("presence_penalty", -2.5, "-2"),
        ("frequency_penalty", 3, "2, got 3"),
        ("seed", 2**63, "9223372036854775807"),
        ("seed", 1.0, "integer"),
        ("stream_interval", 0, "1, got 0"),
        ("stream_interval", 1025, "1024, got 1025"),
        ("n", 0, "1, got 0"),
        ("n", 129, "128, got 129"),
        ("n", True, "integer"),
        ("max_tokens", 0, "1, got 0"),
        ("max_tokens", -5, "1, got -5"),
        ("max_tokens", 10**30, "2147483647"),
        ("min_tokens", -1, "0"),
        ("stop", 5, "list"),
        ("stop", ["a", ""], "at least 1 character"),
        ("stop", ["x"] * 17, "16 items"),
        ("stop", "x" * 257, "256 characters"),
        ("stop_token_ids", [-1], "0, got -1"),
        ("stop_token_ids", ["1"], "integer"),
        ("logit_bias", [1], "object"),
        ("logit_bias", {"x": 1}, "'x' is not a token id"),
        ("logit_bias", {"-1": 1}, "'-1' is not a token id"),
        ("logit_bias", {"5": 101}, "-100..100"),
        ("logit_bias", {"5": "1"}, "-100..100"),
        ("logit_bias", {"5": True}, "-100..100"),
        ("stream", "yes", "boolean"),
        ("ignore_eos", 1, "boolean"),
        ("user", 5, "string"),
        ("cache_salt", "", "at least 1"),
        ("priority", 1.5, "integer"),
    ],
)
def test_a_field_out_of_range_or_type_is_named_with_its_limit(
    field: str, value: Any, mentions: str
) -> None:
    for call in (completion, chat):
        error = refusal(call, **{field: value})
        assert mentions in error.message
        assert error.param is not None
        assert error.param.startswith(field)
        assert field in error.message


@pytest.mark.parametrize("field", ["messages", "stop", "stop_token_ids"])
def test_a_list_of_a_hundred_thousand_wrong_items_costs_no_more_than_the_first(field: str) -> None:
    wrong = [-1] * 100_000
    tracemalloc.start()
    try:
        error = refusal(chat, **{field: wrong})
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert error.param == f"{field}[0]"
    assert peak_bytes < 10_000_000


@pytest.mark.parametrize(
    ("prompt", "mentions"),
    [
        ("", "empty"),
        ([], "empty"),
        ([""], "empty"),
        ([[]], "no tokens"),
        ([[1], []], "no tokens"),
        ([1, "a"], "must be"),
        (["a", [1]], "must be"),
        ([1.0], "must be"),
        ([True], "must be"),
        ({"text": "a"}, "must be"),
        (5, "must be"),
        ([3, -4], "-4"),
        ([2**31], "2147483648"),
    ],
)
def test_prompts_that_are_none_are_refused(prompt: Any, mentions: str) -> None:
    error = refusal(completion, prompt=prompt)

    assert mentions in error.message
    assert error.param == "prompt"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hi", "messages"),
        (["hi"], "messages[0]"),
        ([USER, {"content": "x"}], "messages[1].role"),
        ([USER, {"role": "oracle", "content": "x"}], "messages[1].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content"),
        ([{"role": "user", "content": ["hi"]}], "messages[0].content"),
        ([{"role": "assistant", "tool_calls": [{"id": "1"}]}], "messages[0].tool_calls"),
    ],
)
def test_messages_are_checked_one_by_one(messages: Any, param: str) -> None:
    assert refusal(chat, messages=messages).param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"best_of": 2},
        {"suffix": "x"},
        {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function"}]},
        {"logits_processors": ["x"]},
        {"prompt_logprobs": 1},
        {"chat_template": "{{ x }}"},
        {"guided_json": {}},
        {"stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        {"min_tokens": 9, "max_tokens": 8},
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any]) -> None:
    for call in (completion, chat):
        error = refusal(call, **fields)
        assert error.param is not None
        assert error.param.partition(".")[0] in fields


def test_fields_of_the_other_endpoint_are_refused() -> None:
    assert refusal(chat, echo=True).param == "echo"
    assert refusal(chat, prompt="x").param == "prompt"
    assert refusal(completion, messages=[USER]).param == "messages"
    assert refusal(completion, max_completion_tokens=5).param == "max_completion_tokens"


def test_values_that_change_nothing_are_welcome() -> None:
    neutral: dict[str, Any] = {
        "best_of": 1,
        "suffix": None,
        "response_format": {"type": "text"},
        "tools": [],
    }

    assert completion(**neutral).unknown_fields == ()


def test_logprobs_have_a_form_per_endpoint() -> None:
    assert completion(logprobs=0).sampling.logprobs == 0
    assert completion(logprobs=20).sampling.logprobs == 20
    assert chat(logprobs=True).sampling.logprobs == 0
    assert chat(logprobs=True, top_logprobs=3).sampling.logprobs == 3
    assert chat(logprobs=False).sampling.logprobs is None
    assert refusal(completion, logprobs=21).param == "logprobs"
    assert refusal(completion, logprobs=True).param == "logprobs"
    assert refusal(chat, logprobs=True, top_logprobs=21).param == "top_logprobs"
    assert refusal(chat, top_logprobs=1).param == "top_logprobs"
    assert refusal(completion, logprobs=1, echo=True).param == "echo"


# ── what good bodies become ──────────────────────────────────────────────────────────────────────


def test_all_forms_of_a_prompt_are_understood() -> None:
    assert completion(prompt="a").prompts == (TextPrompt("a"),)
    assert completion(prompt=["a", "b"]).prompts == (TextPrompt("a"), TextPrompt("b"))
    (tokens,) = completion(prompt=[5, 2**31 - 1]).prompts
    assert isinstance(tokens, TokenPrompt)
    assert list(unpack_ids(tokens.token_ids)) == [5, 2**31 - 1]
    assert len(completion(prompt=[[1, 2], [3]]).prompts) == 2


def test_sampling_parameters_arrive_as_they_were_given() -> None:
    generation = completion(
        temperature=0,
        top_p=0.5,
        top_k=-1,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1,
        frequency_penalty=1,
        logit_bias={"30": -100, "4": 1.5},
        seed=-1,
        min_tokens=2,
        max_tokens=9,
        ignore_eos=True,
        stop_token_ids=[3, 4],
        logprobs=2,
    )

    assert generation.sampling == SamplingParams(
        temperature=0,
        top_p=0.5,
        top_k=0,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1,
        frequency_penalty=1,
        logit_bias=((4, 1.5), (30, -100)),
        seed=2**64 - 1,
        min_tokens=2,
        max_tokens=9,
        ignore_eos=True,
        stop_token_ids=(3, 4),
        logprobs=2,
    )
    assert generation.defaulted == ()


def test_what_the_client_left_out_or_null_is_the_models_to_choose() -> None:
    generation = chat(temperature=0.5, top_p=None)

    assert "temperature" not in generation.defaulted
    assert {"top_p", "top_k", "max_tokens"} <= set(generation.defaulted)


def test_completions_are_16_tokens_long_unless_told_otherwise() -> None:
    assert completion().sampling.max_tokens == 16
    assert completion(max_tokens=None).sampling.max_tokens is None
    assert chat().sampling.max_tokens is None


def test_both_names_of_the_token_limit_work_in_a_chat() -> None:
    assert chat(max_tokens=5).sampling.max_tokens == 5
    assert chat(max_completion_tokens=6).sampling.max_tokens == 6
    assert refusal(chat, max_tokens=5, max_completion_tokens=6).param == "max_completion_tokens"


def test_text_options_arrive_as_they_were_given() -> None:
    text = completion(
        stop="END", echo=True, include_stop_str_in_output=True, skip_special_tokens=False
    ).text

    assert text.stop == ("END",)
    assert text.echo
    assert text.include_stop_str_in_output
    assert not text.skip_special_tokens


def test_messages_reach_the_template_as_the_client_wrote_them() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
        {"role": "user", "content": "grüße 🙂", "name": "ann"},
        {"role": "assistant", "content": None},
    ]

    (prompt,) = chat(messages=messages, chat_template_kwargs={"depth": 10**30}).prompts

    assert isinstance(prompt, ChatPrompt)
    assert msgspec.json.decode(prompt.messages) == [*messages[:2], messages[2] | {"content": ""}]
    assert json.loads(prompt.chat_template_kwargs) == {"depth": 10**30}
    assert prompt.add_generation_prompt


def test_continuing_a_message_needs_no_generation_prompt() -> None:
    (prompt,) = chat(continue_final_message=True).prompts

    assert isinstance(prompt, ChatPrompt)
    assert prompt.continue_final_message
    assert not prompt.add_generation_prompt
    both = {"continue_final_message": True, "add_generation_prompt": True}
    assert refusal(chat, **both).param == "continue_final_message"


def test_what_the_template_reads_is_not_nested_without_end() -> None:
    nested: Any = 1
    for _ in range(62):
        nested = [nested]

    assert chat(chat_template_kwargs={"x": nested})
    assert refusal(chat, chat_template_kwargs={"x": [[nested]]}).param == "chat_template_kwargs"
    assert refusal(chat, messages=[USER | {"x": [[[nested]]]}]).param == "messages"


def test_unknown_fields_are_kept_for_the_log() -> None:
    generation = chat(stream=True, stream_options={"colour": 1}, foo=1, metadata={"a": 1})

    assert set(generation.unknown_fields) == {"foo", "metadata", "stream_options.colour"}


# ── fan-out ──────────────────────────────────────────────────────────────────────────────────────


def test_each_choice_of_each_prompt_is_one_request() -> None:
    requests = tokenize_requests(completion(prompt=["a", "b"], n=3), "cmpl-1", 99)

    assert [r.request_id for r in requests] == [f"cmpl-1-{i}" for i in range(6)]
    assert [r.prompt for r in requests] == [TextPrompt("a")] * 3 + [TextPrompt("b")] * 3


def test_a_given_seed_gives_each_choice_its_own_and_each_prompt_the_same() -> None:
    requests = tokenize_requests(completion(prompt=["a", "b"], n=2, seed=7), "cmpl-1", 99)

    seeds = [request.sampling.seed for request in requests]
    assert seeds[:2] == seeds[2:]
    assert seeds[0] == 7
    assert seeds[1] != 7


def test_a_drawn_seed_differs_for_all_sequences() -> None:
    requests = tokenize_requests(completion(prompt=["a", "a"], n=2), "cmpl-1", 99)

    assert len({request.sampling.seed for request in requests}) == 4


def test_a_target_for_the_time_between_tokens_holds_for_each_sequence() -> None:
    requests = tokenize_requests(completion(prompt="a", n=2), "cmpl-1", 99, 40.0)

    assert [request.target_tbt_ms for request in requests] == [40.0, 40.0]


def test_a_stream_says_how_many_tokens_come_together_or_the_gateway_does() -> None:
    def interval(**fields: Any) -> int:
        (request,) = tokenize_requests(completion(**fields), "cmpl-1", 99, stream_interval=3)
        return request.stream_interval

    assert interval(stream=True) == 3
    assert interval(stream=True, stream_interval=7) == 7
    assert interval(stream=True, stream_interval=1) == 1
    assert interval() == WHOLE_ANSWER_INTERVAL


def test_only_streams_have_an_interval() -> None:
    error = refusal(completion, stream_interval=4)

    assert (error.message, error.param) == (
        "stream_interval needs stream to be true",
        "stream_interval",
    )


@given(st.integers(0, 2**64 - 1), st.integers(0, 127))
def test_derived_seeds_fit_64_bits(seed: int, index: int) -> None:
    assert 0 <= derive_seed(seed, index) < 2**64
