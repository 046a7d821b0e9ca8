"""An event is one line, whatever its text holds and whoever reads it."""

import json

import pytest

from services.gateway.sse import encode_event

TEXT = 'a\u2028b\u2029c\x85d\n\r\x0b\x1e"\\ é \U0001f600 \u2027\u202a\x86'


def test_no_text_ends_the_line_of_its_event() -> None:
    event = encode_event({"text": TEXT}).decode()

    assert event.endswith("\n\n")
    [line] = event[:-2].splitlines()  # as httpx splits: at every line end that Unicode knows
    assert json.loads(line.removeprefix("data: ")) == {"text": TEXT}


@pytest.mark.parametrize("text", ["", "plain", "\u0080\u2028"])
def test_any_text_comes_back(text: str) -> None:
    line = encode_event([text]).removeprefix(b"data: ")

    assert json.loads(line) == [text]
