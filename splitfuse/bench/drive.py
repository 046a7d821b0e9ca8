"""Put a load on a server and note when its tokens come."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import uvloop

from common.workload.load import Load
from common.workload.timeline import RequestShape, Timeline
from splitfuse.bench.sse_client import DEFAULT_LIMIT_S, Endpoint, RequestFailed, complete

OnEnd = Callable[[Timeline], None]


def drive(
    load: Load,
    bodies: Sequence[bytes],
    endpoint: Endpoint,
    on_end: OnEnd,
    *,
    limit_s: float = DEFAULT_LIMIT_S,
) -> None:
    """Send all requests of `load` as it says; returns when the last has ended.

    Args:
        bodies: one per request of the load.
        on_end: gets the timeline of each request at its end, of a failed one too. It delays the
            others, so it must be quick.
        limit_s: seconds until a request has failed.

    Raises:
        KeyboardInterrupt: by Ctrl-C; requests that had not ended are given up and not told of.
    """
    client = _Client(bodies, load.shapes, endpoint, on_end, limit_s)
    how = client.closed_loop if load.is_closed else client.open_loop
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(how(load.starts_s))


class _Client:
    """All clients of one load."""

    def __init__(
        self,
        bodies: Sequence[bytes],
        shapes: Sequence[RequestShape],
        endpoint: Endpoint,
        on_end: OnEnd,
        limit_s: float,
    ) -> None:
        self._asks = list(zip(shapes, bodies, strict=True))
        self._endpoint = endpoint
        self._on_end = on_end
        self._limit_s = limit_s

    async def closed_loop(self, starts_s: Sequence[float]) -> None:
        waiting = iter(self._asks)  # shared: each client takes the next

        async def client(start_s: float) -> None:
            await asyncio.sleep(start_s)
            for shape, body in waiting:
                await self._ask(shape, body)

        async with asyncio.TaskGroup() as clients:
            for start_s in starts_s:
                clients.create_task(client(start_s))

    async def open_loop(self, starts_s: Sequence[float]) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as requests:
            for start_s, (shape, body) in zip(starts_s, self._asks, strict=True):
                await asyncio.sleep(began + start_s - time.monotonic())
                requests.create_task(self._ask(shape, body))

    async def _ask(self, shape: RequestShape, body: bytes) -> None:
        sent_at = time.monotonic()
        try:
            reply = await complete(self._endpoint, body, limit_s=self._limit_s)
        except RequestFailed as failure:
            self._on_end(Timeline(shape, sent_at, failure=str(failure)))
            return
        num_output = len(reply.piece_at)  # of a server that does not count
        if reply.num_tokens is not None:
            num_prompt, num_output = reply.num_tokens
            shape = replace(shape, num_prompt_tokens=num_prompt)
        self._on_end(Timeline(shape, reply.sent_at, reply.piece_at, num_output))
