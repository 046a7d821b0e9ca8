"""A client that takes as little of the machine as it can: one connection, one streamed completion.

Servers share their cores with it, so it has no pool, no models and no retries.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httptools

READ_BYTES = 1 << 16
DEADLINE_S = 900.0  # of one request
OK = 200
MAX_WORDS = 500  # characters of a refusal that are shown
DATA = b"data:"
DONE = b"[DONE]"


class RequestFailed(Exception):
    """The server refused, failed on the way, or said too little; the message has its words."""


@dataclass
class Answer:
    began: float  # monotonic seconds; the others too
    text_at: list[float] = field(default_factory=list)  # when each event with text came
    text: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def ended(self) -> float:
        return self.text_at[-1]


async def complete(port: int, body: dict[str, Any]) -> Answer:
    """Ask for a streamed completion and take the time of each piece of text.

    Raises:
        RequestFailed: it was refused, broke off, took too long or had no usage at its end.
    """
    reading = _Reading()
    try:
        async with asyncio.timeout(DEADLINE_S):
            await _exchange(port, body, reading)
    except (OSError, TimeoutError, httptools.HttpParserError, json.JSONDecodeError) as error:
        raise RequestFailed(f"{type(error).__name__}: {error}") from error
    return reading.checked()


async def _exchange(port: int, body: dict[str, Any], reading: "_Reading") -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(_request(port, body))
        while not reading.complete and (received := await reader.read(READ_BYTES)):
            reading.feed(received, time.monotonic())
    finally:
        writer.close()


def _request(port: int, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


class _Reading:
    """Bytes in, an `Answer` out. httptools calls the `on_` methods."""

    def __init__(self) -> None:
        self.complete = False
        self._answer = Answer(began=time.monotonic())
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self._body = b""  # what follows its last line end; all of it if the request was refused

    def feed(self, received: bytes, now: float) -> None:
        self._parser.feed_data(received)
        if self._status == OK:
            *lines, self._body = self._body.split(b"\n")
            for line in lines:
                self._line(line, now)

    def checked(self) -> Answer:
        if self._status != OK:
            words = self._body.decode(errors="replace")[:MAX_WORDS]
            raise RequestFailed(f"status {self._status}: {words}")
        if not self._answer.text_at or not self._answer.output_tokens:
            raise RequestFailed("the stream ended without text or without usage")
        return self._answer

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.complete = True

    def _line(self, line: bytes, now: float) -> None:
        data = line.removeprefix(DATA).strip()
        if line.startswith(DATA) and data != DONE:
            self._event(json.loads(data), now)

    def _event(self, event: dict[str, Any], now: float) -> None:
        if "error" in event:
            raise RequestFailed(str(event["error"]))
        answer = self._answer
        text = "".join(choice.get("text") or "" for choice in event.get("choices", ()))
        if text:
            answer.text += text
            answer.text_at.append(now)
        if usage := event.get("usage"):
            answer.prompt_tokens = usage["prompt_tokens"]
            answer.output_tokens = usage["completion_tokens"]
