"""Framing of server-sent events: one JSON object per event, `[DONE]` at the end."""

import re
from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"

_encoder = msgspec.json.Encoder()

# U+0085, U+2028 and U+2029, which JSON may hold as they are. Many clients take any of them for the
# end of a line; httpx does.
_LINE_ENDS = re.compile(rb"\xc2\x85|\xe2\x80[\xa8\xa9]")


def encode_event(data: Any) -> bytes:
    """One event with `data` as its JSON, in which no character ends a line."""
    return b"data: %b\n\n" % _LINE_ENDS.sub(_escape, _encoder.encode(data))


def _escape(match: re.Match[bytes]) -> bytes:
    return b"\\u%04x" % ord(match[0].decode())
