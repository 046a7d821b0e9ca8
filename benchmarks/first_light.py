"""What a user feels: start-up, time to first token, tokens per second, and who uses the processor.

    python -m benchmarks.first_light [--clients 1 8 32] [--json FILE]

Starts `splitfuse serve` with the default model, twice (the first start may have to make the model),
and loads it through HTTP with closed loops of clients that all see different prompts. Prints the
median over repeats, and the spread.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support.free_port import free_port
from tests.support.load import Stream, client, stream
from tests.support.mesh import ROOT, wait_until

WORDS = re.findall(r"\w+", "a pass costs what its tokens cost, so long prompts are split in pieces")
OUTPUT_TOKENS = 64
PROMPT_WORDS = 100
REPEATS = 3


@dataclass
class Point:
    """One closed loop of clients."""

    clients: int
    tokens_per_s: float
    spread: tuple[float, float]
    ttft_ms_p50: float
    gap_ms_p50: float
    gap_ms_p99: float
    cpu_share: dict[str, float]  # of all processor time used, by service


@contextmanager
def serving(*flags: str) -> Iterator[tuple[str, float, psutil.Process]]:
    """A running `splitfuse serve`: its url, seconds until ready, and its process."""
    port = free_port()
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "splitfuse", "serve", "--port", str(port), *flags],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: is_ready(url), "ready", 600)
        yield url, time.monotonic() - began, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(10)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def prompt(number: int) -> str:
    """Different from its first word on, so that no prefix is shared."""
    return f"{number} " + " ".join(
        WORDS[(number * 7 + i * 5) % len(WORDS)] for i in range(PROMPT_WORDS)
    )


def cpu_seconds(supervisor: psutil.Process) -> dict[str, float]:
    """Processor seconds used so far, by kind of service."""
    used: dict[str, float] = {}
    for child in supervisor.children(recursive=True):
        found = re.search(r"services\.(\w+)", " ".join(child.cmdline()))
        if found:
            times = child.cpu_times()
            used[found[1]] = used.get(found[1], 0.0) + times.user + times.system
    return used


class _Stamps(asyncio.Queue[int]):
    """Notes the moment of each event of a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[float] = []

    def put_nowait(self, item: int) -> None:
        self.at.append(time.monotonic())


@dataclass
class Timed:
    stream: Stream
    ttft_s: float
    gaps_s: list[float]


async def timed_stream(http: httpx.AsyncClient, url: str, model: str, number: int) -> Timed:
    stamps = _Stamps()
    began = time.monotonic()
    got = await stream(
        http,
        url,
        stamps,
        model=model,
        prompt=prompt(number),
        max_tokens=OUTPUT_TOKENS,
        temperature=0,
        ignore_eos=True,
    )
    at = stamps.at[:-1]  # the last event is the usage
    return Timed(got, at[0] - began, [b - a for a, b in pairwise(at)])


async def closed_loop(url: str, model: str, clients: int, first: int, each: int) -> list[Timed]:
    async with client(clients) as http:

        async def one(index: int) -> list[Timed]:
            numbers = range(first + index * each, first + (index + 1) * each)
            return [await timed_stream(http, url, model, number) for number in numbers]

        return [timed for done in await asyncio.gather(*map(one, range(clients))) for timed in done]


def measure(url: str, model: str, clients: int, supervisor: psutil.Process, first: int) -> Point:
    rates: list[float] = []
    all_timed: list[Timed] = []
    each = 4 if clients == 1 else 2
    before = cpu_seconds(supervisor)
    for repeat in range(REPEATS):
        began = time.monotonic()
        start = first + repeat * clients * each
        timed = asyncio.run(closed_loop(url, model, clients, start, each))
        tokens = sum(t.stream.usage["completion_tokens"] for t in timed)
        rates.append(tokens / (time.monotonic() - began))
        all_timed += timed
    used = {kind: s - before.get(kind, 0.0) for kind, s in cpu_seconds(supervisor).items()}
    gaps = sorted(gap for timed in all_timed for gap in timed.gaps_s)
    return Point(
        clients=clients,
        tokens_per_s=round(statistics.median(rates), 1),
        spread=(round(min(rates), 1), round(max(rates), 1)),
        ttft_ms_p50=round(1e3 * statistics.median(t.ttft_s for t in all_timed), 1),
        gap_ms_p50=round(1e3 * statistics.median(gaps), 1),
        gap_ms_p99=round(1e3 * gaps[int(0.99 * (len(gaps) - 1))], 1),
        cpu_share={kind: round(s / sum(used.values()), 3) for kind, s in used.items()},
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    report: dict[str, Any] = {"start_s": {}, "points": []}
    with serving() as (_, cold_s, _supervisor):
        report["start_s"]["first"] = round(cold_s, 2)
    with serving() as (url, warm_s, supervisor):
        report["start_s"]["again"] = round(warm_s, 2)
        model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        first_token = asyncio.run(closed_loop(url, model, 1, 0, 1))[0]
        report["first_request_ttft_ms"] = round(1e3 * first_token.ttft_s, 1)
        for index, clients in enumerate(options.clients):
            point = measure(url, model, clients, supervisor, first=1000 * (index + 1))
            report["points"].append(asdict(point))
            print(json.dumps(asdict(point)))
    print(json.dumps({key: value for key, value in report.items() if key != "points"}))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
