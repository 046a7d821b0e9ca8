"""When pieces of an answer came in a body of server-sent events, found without decoding its JSON.

A client shares the machine with the server that it measures, and most of what it would do by
decoding each event is to throw the result away. In JSON a quote inside a string is escaped, so the
bytes of a key with its quotes and colon appear nowhere but at that key.
"""

import json
import re
from typing import Any

_DATA = b"data:"
_TEXT = b'"text":'
_TOKEN_IDS = b'"token_ids":'
_USAGE = re.compile(rb'"usage":\s*\{\s*"')  # an object that says something
_ERROR = re.compile(rb'"error":\s*[{"]')
_DONE = b"[DONE]"


class PieceReader:
    """Takes the bytes of a streamed completion with one choice, in parts of any size."""

    def __init__(self, *, keep_text: bool = False) -> None:
        self.piece_at: list[float] = []  #: when each event with text or token ids came
        self.error: bytes | None = None  #: the first event that tells of one
        self.is_done = False  #: whether the server has said so
        self._usage: bytes | None = None
        self._events: list[bytes] | None = [] if keep_text else None
        self._rest = b""  # a line whose end has not come

    def feed(self, body: bytes, now: float) -> None:
        """Take what has come at `now`."""
        *lines, self._rest = (self._rest + body).split(b"\n")
        for line in lines:
            if line.startswith(_DATA):
                self._event(line, now)

    def usage(self) -> tuple[int, int] | None:
        """Prompt and output tokens as the last event with usage counts them, if there was one.

        Raises:
            ValueError: the event is no JSON or has other fields.
        """
        if self._usage is None:
            return None
        usage: Any = _decode(self._usage).get("usage")
        try:
            return usage["prompt_tokens"], usage["completion_tokens"]
        except (KeyError, TypeError):
            raise ValueError(f"usage without token counts: {usage}") from None

    def text(self) -> str:
        """All text; the reader must have been told to keep it.

        Raises:
            ValueError: an event is no JSON.
        """
        choices = [
            choice for event in self._events or () for choice in _decode(event).get("choices", ())
        ]
        return "".join(choice.get("text") or "" for choice in choices)

    def _event(self, line: bytes, now: float) -> None:
        if _has_more(line, _TEXT, b'""') or _has_more(line, _TOKEN_IDS, b"[]"):
            self.piece_at.append(now)
            if self._events is not None:
                self._events.append(line)
        if _USAGE.search(line):
            self._usage = line
        if self.error is None and _ERROR.search(line):
            self.error = line.removeprefix(_DATA).strip()
        if line.removeprefix(_DATA).strip() == _DONE:
            self.is_done = True


def _has_more(line: bytes, key: bytes, empty: bytes) -> bool:
    """Whether the JSON value of a key is of the type of the empty one, and not empty."""
    at = line.find(key)
    if at < 0:
        return False
    at += len(key)
    while line[at : at + 1] == b" ":
        at += 1
    return line[at : at + 1] == empty[:1] and line[at + 1 : at + 2] != empty[1:]


def _decode(line: bytes) -> dict[str, Any]:
    event = json.loads(line.removeprefix(_DATA))
    return event if isinstance(event, dict) else {}
