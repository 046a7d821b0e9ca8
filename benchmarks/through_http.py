"""What the way through HTTP costs: tokens per second of streams, beside the engine that makes them.

    python -m benchmarks.through_http [--clients 1 8 32] [--rounds 5] [--tokens 256]
                                      [--model DIRECTORY] [--cpu-threads N]

The engine alone decodes so many sequences in a loop, in its own process; then `splitfuse serve`
streams as many to clients, through all four services. They take turns, so that both see the same
machine. The largest of its loads has run on either side before it is measured, and the server was
left alone until it had taken memory ahead: what is first written is slow. The client runs on the
same cores, and its processor time is shown: it only counts bytes. With fewer threads than cores the
others keep out of the engine's way.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.first_light import cpu_seconds, serving
from common.config import WorkerOptions
from common.messages import Chunk, NewSequence, SamplingParams, StepPlan, StepResult
from common.token_ids import pack_ids
from services.worker.engine import Engine
from splitfuse.models import resolve_model

PROMPT_TOKENS = 16
BLOCK_SIZE = 16
FIRST_ID = 1000  # of the ids that prompts are made of; any will do
EVENT = b"data: {"
LOOK_PERIOD_S = 1.0  # a worker begins to take memory after 0.2 s without work


class _Stream(asyncio.Protocol):
    """Sends one request and notes when its text came."""

    def __init__(self, request: bytes, done: "asyncio.Future[None]") -> None:
        self._request = request
        self._done = done
        self.arrivals: list[tuple[float, int]] = []  # when, and how many events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        count = data.count(EVENT)
        if count:
            self.arrivals.append((time.monotonic(), count))

    def num_tokens(self, of: int, begin: float, end: float) -> float:
        """How many of its `of` tokens came later than `begin`, and not later than `end`.

        By events, of which there are fewer: a token that ends inside a character makes none.
        """
        num_events = sum(count for _, count in self.arrivals)
        return of / num_events * sum(count for at, count in self.arrivals if begin < at <= end)

    def connection_lost(self, exc: Exception | None) -> None:
        self._done.set_result(None)


def prompt_ids(number: int) -> list[int]:
    return [FIRST_ID + (number * 977 + i * 31) % 20_000 for i in range(PROMPT_TOKENS)]


def request(port: int, model: str, number: int, num_tokens: int) -> bytes:
    body = {
        "model": model,
        "prompt": prompt_ids(number),
        "max_tokens": num_tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
    }
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def stream_all(port: int, model: str, first: int, clients: int, num_tokens: int) -> float:
    """Tokens per second of `clients` streams, while all of them run.

    That is from the last first token to the first last one: before, prompts are computed.
    """
    loop = asyncio.get_running_loop()
    streams, ends = [], []
    for index in range(clients):
        ended = loop.create_future()
        content = request(port, model, first + index, num_tokens)
        _, stream = await loop.create_connection(
            lambda content=content, ended=ended: _Stream(content, ended),  # type: ignore[misc]
            "127.0.0.1",
            port,
        )
        streams.append(stream)
        ends.append(ended)
    await asyncio.gather(*ends)
    begin = max(stream.arrivals[0][0] for stream in streams)
    end = min(stream.arrivals[-1][0] for stream in streams)
    came = sum(stream.num_tokens(num_tokens, begin, end) for stream in streams)
    assert came > clients * num_tokens / 2, f"{came:.0f} tokens while all streams ran"
    return came / (end - begin)


def new_sequence(index: int, num_tokens: int) -> NewSequence:
    """A prompt like that of a stream, with blocks for all of its output."""
    num_blocks = -(-(PROMPT_TOKENS + num_tokens) // BLOCK_SIZE)
    return NewSequence(
        sequence_id=index,
        token_ids=pack_ids(prompt_ids(index)),
        num_prompt_tokens=PROMPT_TOKENS,
        num_computed_tokens=0,
        block_ids=pack_ids(range(index * num_blocks, (index + 1) * num_blocks)),
        sampling=SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True),
    )


def engine_alone(
    model_dir: str, clients: Sequence[int], num_tokens: int, threads: int | None
) -> dict[int, float]:
    """Tokens per second of the engine in a loop; run in a process of its own."""
    options = {"block_size": BLOCK_SIZE, "cpu_threads": threads}
    engine = Engine(Path(model_dir), WorkerOptions.model_validate(options))
    rates = {}
    for count in (max(clients), *clients):  # the largest twice: its second rate stays
        engine.reset()
        new = tuple(new_sequence(index, num_tokens) for index in range(count))
        prefill = tuple(Chunk(s.sequence_id, 0, PROMPT_TOKENS, b"", True) for s in new)
        assert isinstance(engine.step(StepPlan(0, prefill, new)), StepResult)
        began = time.monotonic()
        for step in range(1, num_tokens):
            position = PROMPT_TOKENS + step - 1
            chunks = tuple(Chunk(s.sequence_id, position, 1, b"", True) for s in new)
            assert isinstance(engine.step(StepPlan(step, chunks)), StepResult)
        rates[count] = count * (num_tokens - 1) / (time.monotonic() - began)
    return rates


def in_own_process(
    model_dir: str, clients: Sequence[int], num_tokens: int, threads: int | None
) -> dict[int, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(engine_alone, (model_dir, clients, num_tokens, threads))


@dataclass(frozen=True)
class Served:
    """Streams through HTTP; a step makes one token of each."""

    tokens_per_s: float
    cpu_ms_per_step: dict[str, float]  # by process


def wait_for_memory(supervisor: psutil.Process, limit_s: float = 60.0) -> None:
    """Until the services, which have nothing to do, take no more memory."""
    deadline = time.monotonic() + limit_s
    before, now = 0, 1
    while now > before:
        assert time.monotonic() < deadline, f"memory still grows after {limit_s:.0f} s"
        time.sleep(LOOK_PERIOD_S)
        before, now = now, sum(child.memory_info().rss for child in supervisor.children(True))


def through_http(
    clients: Sequence[int], num_tokens: int, flags: Sequence[str]
) -> dict[int, Served]:
    measured = {}
    with serving(*flags) as (url, _, supervisor):
        port = int(url.rpartition(":")[2])
        model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        asyncio.run(stream_all(port, model, 10_000, max(clients), num_tokens))
        wait_for_memory(supervisor)
        for count in clients:
            before, own = cpu_seconds(supervisor), psutil.Process().cpu_times()
            rate = asyncio.run(stream_all(port, model, 100 * count, count, num_tokens))
            after, now = cpu_seconds(supervisor), psutil.Process().cpu_times()
            used = {kind: after[kind] - before[kind] for kind in after}
            used["client"] = now.user + now.system - own.user - own.system
            measured[count] = Served(rate, {k: 1e3 * s / num_tokens for k, s in used.items()})
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--model", help="as `splitfuse serve` takes it; other flags go there, too")
    parser.add_argument("--cpu-threads", type=int, help="of the engine, alone and served")
    options, flags = parser.parse_known_args()
    model_dir = str(resolve_model(options.model, print))
    if options.cpu_threads is not None:
        flags += ["--cpu-threads", str(options.cpu_threads)]
    alone, served = [], []
    for _ in range(options.rounds):
        alone.append(
            in_own_process(model_dir, options.clients, options.tokens, options.cpu_threads)
        )
        served.append(through_http(options.clients, options.tokens, [model_dir, *flags]))
    for count in options.clients:
        print(f"{count:3d} clients: {summary(count, alone, served)}")


def summary(count: int, alone: list[dict[int, float]], served: list[dict[int, Served]]) -> str:
    rates = [each[count].tokens_per_s for each in served]
    ratios = [100 * rate / each[count] for rate, each in zip(rates, alone, strict=True)]
    used = {
        kind: statistics.median(each[count].cpu_ms_per_step[kind] for each in served)
        for kind in served[0][count].cpu_ms_per_step
    }
    return (
        f"engine {statistics.median(each[count] for each in alone):.1f} tokens/s, "
        f"through HTTP {statistics.median(rates):.1f}, "
        f"{statistics.median(ratios):.1f} % ({min(ratios):.1f}-{max(ratios):.1f}); "
        "processor ms per step: " + ", ".join(f"{kind} {ms:.2f}" for kind, ms in used.items())
    )


if __name__ == "__main__":
    main()
