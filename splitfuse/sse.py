"""Read a stream of server-sent events as OpenAI's API sends them."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx

from splitfuse.generate import parse_error

_DATA = "data:"
_DONE = "[DONE]"


async def read_events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream, until its `[DONE]`.

    Raises:
        ServerError: the server refused, failed in the middle, or stopped before `[DONE]`.
    """
    if response.status_code != httpx.codes.OK:
        raise parse_error(response.status_code, await response.aread())
    async for line in _lines(response):
        if not line.startswith(_DATA):
            continue
        data = line.removeprefix(_DATA).strip()
        if data == _DONE:
            return
        event = json.loads(data)
        if "error" in event:
            raise parse_error(response.status_code, data.encode())
        yield event
    raise parse_error(response.status_code, b"the stream ended early")


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """Whole lines; httpx also ends one at U+2028 and its like, which JSON may hold as they are."""
    rest = b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line.decode()
