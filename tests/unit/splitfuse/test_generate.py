import pytest

from splitfuse.generate import (
    Response,
    check_params,
    check_prompts,
    completion_body,
    parse_answer,
    parse_error,
)


def body_of(max_tokens: int = 8, *, stream: bool = False, **options: object) -> dict[str, object]:
    return completion_body("m", "Hi", check_params(options), max_tokens, stream=stream)


def test_what_is_not_given_is_left_to_the_server() -> None:
    assert body_of() == {
        "model": "m",
        "prompt": "Hi",
        "max_tokens": 8,
        "min_tokens": 0,
        "ignore_eos": False,
        "stop": [],
        "stream": False,
    }


def test_no_sampling_means_temperature_zero() -> None:
    assert body_of(do_sample=False)["temperature"] == 0.0


def test_sampling_without_a_temperature_means_one_as_in_mii() -> None:
    assert body_of(do_sample=True)["temperature"] == 1.0
    assert body_of(do_sample=True, temperature=0.3)["temperature"] == 0.3


def test_names_of_mii_become_names_of_the_server() -> None:
    body = body_of(min_new_tokens=3, ignore_eos=True, stop="END", top_k=5, seed=7)

    assert body["min_tokens"] == 3
    assert body["ignore_eos"] is True
    assert body["stop"] == ["END"]
    assert (body["top_k"], body["seed"]) == (5, 7)


def test_a_stream_reports_lengths_with_each_piece() -> None:
    assert body_of(stream=True)["stream_options"] == {
        "include_usage": True,
        "continuous_usage_stats": True,
    }


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(TypeError, match="num_beams"):
        check_params({"num_beams": 2})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", -0.1),
        ("top_p", 0.0),
        ("top_p", "0.9"),
        ("top_k", 0),
        ("top_k", 1.0),
        ("max_new_tokens", 0),
        ("max_new_tokens", True),
        ("min_new_tokens", -1),
        ("max_length", 1),
        ("seed", -1),
        ("stop", [""]),
        ("stop", 5),
        ("ignore_eos", 1),
        ("repetition_penalty", 0.0),
    ],
)
def test_a_value_that_cannot_be_used_is_named_before_anything_is_sent(
    name: str, value: object
) -> None:
    with pytest.raises(ValueError, match=name):
        check_params({name: value})


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 10, "max_new_tokens": 5},
        {"do_sample": False, "temperature": 0.7},
        {"min_new_tokens": 6, "max_new_tokens": 5},
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        check_params(options)


def test_one_prompt_is_a_list_of_one() -> None:
    assert check_prompts("a") == ["a"]
    assert check_prompts(["a", "b"]) == ["a", "b"]
    assert check_prompts([]) == []


def test_a_prompt_that_is_no_text_is_named_by_its_place() -> None:
    with pytest.raises(TypeError, match="prompt 1 must be a string, not int"):
        check_prompts(["a", 5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        check_prompts("")


def test_an_answer_prints_as_its_text() -> None:
    answer = {
        "choices": [{"text": " Paris", "finish_reason": "length"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1},
    }

    assert parse_answer(answer) == Response(" Paris", 5, 1, "length")
    assert str(parse_answer(answer)) == " Paris"


def test_an_error_keeps_the_servers_words_and_code() -> None:
    error = parse_error(400, b'{"error": {"message": "too long", "code": "c", "type": "t"}}')

    assert (str(error), error.status, error.code) == ("too long", 400, "c")


@pytest.mark.parametrize("body", [b"<html>bad gateway", b"\xff", b'{"error": "x"}', b"[]", b""])
def test_an_error_that_is_not_openais_is_still_an_error(body: bytes) -> None:
    assert "502" in str(parse_error(502, body))
