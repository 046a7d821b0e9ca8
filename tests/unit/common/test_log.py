import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from common import log


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_json_line_carries_event_fields_and_who_speaks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure("info", "json", "worker", "worker-0")
    structlog.get_logger("test").info("step done", request_id="r-1", num_tokens=7)

    (line,) = json_lines(capsys)
    assert line.pop("timestamp")
    assert line == {
        "event": "step done",
        "level": "info",
        "service": "worker",
        "name": "worker-0",
        "request_id": "r-1",
        "num_tokens": 7,
    }


def test_lines_of_libraries_look_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "json", "worker", "worker-0")
    logging.getLogger("some.library").warning("%s is odd", "this")

    (line,) = json_lines(capsys)
    assert (line["event"], line["level"], line["service"]) == ("this is odd", "warning", "worker")


def test_lines_below_the_level_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("warning", "json", "worker", "worker-0")
    structlog.get_logger("test").info("quiet")
    logging.getLogger("some.library").info("quiet")

    assert json_lines(capsys) == []


def test_an_exception_brings_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "console", "worker", "worker-0")
    try:
        raise ValueError("odd")
    except ValueError:
        structlog.get_logger("test").exception("crashed")

    text = capsys.readouterr().err
    assert "crashed" in text
    assert "ValueError: odd" in text
    assert "Traceback" in text


@pytest.mark.parametrize(
    "field",
    ["prompt", "user_prompt", "text", "messages", "api_key", "Authorization", "client_secret"],
)
def test_what_users_write_and_what_grants_access_is_dropped(
    capsys: pytest.CaptureFixture[str], field: str
) -> None:
    log.configure("info", "json", "gateway", "gateway-0")
    structlog.get_logger("test").info("request", **{field: "confidential", "status": 200})

    (line,) = json_lines(capsys)
    assert "confidential" not in json.dumps(line)
    assert line["status"] == 200


@pytest.mark.parametrize("field", ["num_messages", "num_prompt_tokens", "keys", "token_budget"])
def test_counts_and_limits_are_not_secrets(field: str) -> None:
    assert log.drop_secrets(None, "info", {field: 3}) == {field: 3}


def test_once_is_true_the_first_time_only() -> None:
    once = log.Once()

    assert [once.first("a"), once.first("a"), once.first("b")] == [True, False, True]
    once.forget("a")
    assert once.first("a")


def test_once_forgets_the_oldest_rather_than_grow() -> None:
    once = log.Once(capacity=2)
    for thing in ("a", "b", "a", "c"):  # b was asked about longest ago
        once.first(thing)

    assert not once.first("a")
    assert once.first("b")
