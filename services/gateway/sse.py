"""Framing of server-sent events: one JSON object per event, `[DONE]` at the end."""

from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"

_encoder = msgspec.json.Encoder()


def encode_event(data: Any) -> bytes:
    """One event with `data` as its JSON, which never holds a line break of its own."""
    return b"data: %b\n\n" % _encoder.encode(data)
