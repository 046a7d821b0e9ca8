"""Events are read as they were sent, whatever their text holds and however they are cut."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from splitfuse.sse import read_events

EVENTS = (
    'data: {"text": "a\u2028b\x85c é"}\r\n\r\n: a comment\n\ndata:{"text":"d"}\n\ndata: [DONE]\n\n'
).encode()


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_event_ends_where_its_line_does(size: int) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(EVENTS), size):
            yield EVENTS[at : at + size]

    async def read() -> list[dict[str, Any]]:
        return [event async for event in read_events(httpx.Response(200, content=parts()))]

    assert asyncio.run(read()) == [{"text": "a\u2028b\x85c é"}, {"text": "d"}]
