"""Many clients at once against a running mesh, through the OpenAI-shaped HTTP API."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

TIMEOUT = httpx.Timeout(600.0, connect=30.0)


@dataclass
class Stream:
    """What one streamed completion gave."""

    text: str = ""
    events: int = 0
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)


async def complete(client: httpx.AsyncClient, url: str, **body: Any) -> dict[str, Any]:
    """One completion, not streamed; raises on any status but 200."""
    response = await client.post(f"{url}/v1/completions", json=body)
    if response.status_code != 200:
        raise AssertionError(f"{response.status_code}: {response.text}")
    result: dict[str, Any] = response.json()
    return result


async def stream(
    client: httpx.AsyncClient, url: str, progress: asyncio.Queue[int] | None = None, **body: Any
) -> Stream:
    """One streamed completion; reports its number of events so far into `progress`."""
    got = Stream()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", f"{url}/v1/completions", json=body | options) as response:
        if response.status_code != 200:
            raise AssertionError(f"{response.status_code}: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            _read(got, json.loads(line.removeprefix("data: ")))
            if progress is not None:
                progress.put_nowait(got.events)
    return got


def _read(got: Stream, event: dict[str, Any]) -> None:
    got.events += 1
    if "error" in event:
        got.errors.append(event["error"])
        return
    for choice in event["choices"]:
        got.text += choice["text"]
        got.finish_reason = choice["finish_reason"] or got.finish_reason
    got.usage = event.get("usage") or got.usage


def client(limit: int = 256) -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=TIMEOUT, limits=httpx.Limits(max_connections=limit))


async def complete_all(
    url: str, bodies: Sequence[dict[str, Any]], concurrency: int
) -> list[dict[str, Any]]:
    """All completions, at most `concurrency` at once, results in the order of `bodies`."""
    gate = asyncio.Semaphore(concurrency)

    async with client() as http:

        async def one(body: dict[str, Any]) -> dict[str, Any]:
            async with gate:
                return await complete(http, url, **body)

        return await asyncio.gather(*(one(body) for body in bodies))
