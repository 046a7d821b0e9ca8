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
    async for line in response.aiter_lines():
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
