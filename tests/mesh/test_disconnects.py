"""200 clients that connect and vanish at random moments leave nothing behind."""

import asyncio
import random
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support import load
from tests.support.mesh import Mesh, wait_until

NUM_CLIENTS = 200

pytestmark = pytest.mark.mesh


async def vanish(http: httpx.AsyncClient, url: str, rng: random.Random) -> None:
    """Ask for a long answer and go away: before the headers, in mid-stream, or not streaming."""
    body: dict[str, Any] = {
        "model": "tiny",
        "prompt": "go " * rng.randint(1, 300),
        "max_tokens": 1000,
    }
    patience_s = rng.choice([0.0, 0.005, 0.05, 0.3, 1.0]) * rng.random()
    ask = load.stream if rng.random() < 0.7 else load.complete
    try:
        async with asyncio.timeout(patience_s):
            await ask(http, url, ignore_eos=True, **body)
    except TimeoutError:
        pass


async def crowd(url: str) -> None:
    rng = random.Random(7)
    async with load.client(limit=NUM_CLIENTS) as http:
        await asyncio.gather(*(vanish(http, url, rng) for _ in range(NUM_CLIENTS)))


def test_vanished_clients_leave_no_block_request_or_descriptor(tiny_model: Path) -> None:
    with Mesh(
        tiny_model,
        tokenizer_flags=("--served-model-name", "tiny"),
        worker_flags=("--kv-cache-memory", "16MiB", "--cpu-threads", "1"),
    ) as mesh:
        asyncio.run(crowd(mesh.url))  # the first round opens what stays open: pools, threads
        settle(mesh)
        before = {s.name: psutil.Process(s.process.pid).num_fds() for s in mesh.services}

        asyncio.run(crowd(mesh.url))
        settle(mesh)

        after = {s.name: psutil.Process(s.process.pid).num_fds() for s in mesh.services}
        assert all(after[name] <= before[name] + 2 for name in before), (before, after)
        scheduler = mesh.of("scheduler")[0]
        assert scheduler.metric("kv_cache_usage_perc") == 0
        assert mesh.of("gateway")[0].metric("gateway_num_requests") == 0
        assert mesh.of("tokenizer")[0].metric("tokenizer_num_requests") == 0
        assert mesh.of("worker")[0].metric("worker_num_sequences") == 0


def settle(mesh: Mesh) -> None:
    scheduler, worker = mesh.of("scheduler")[0], mesh.of("worker")[0]
    wait_until(
        lambda: (
            scheduler.metric("num_requests_running") + scheduler.metric("num_requests_waiting") == 0
        ),
        "the scheduler has forgotten all requests",
    )
    wait_until(lambda: scheduler.metric("kv_cache_usage_perc") == 0, "all blocks are free")
    wait_until(lambda: worker.metric("worker_num_sequences") == 0, "the worker holds no sequence")
    wait_until(lambda: mesh.of("tokenizer")[0].metric("tokenizer_num_requests") == 0, "tokenizer")
    wait_until(lambda: mesh.of("gateway")[0].metric("gateway_num_requests") == 0, "gateway idle")
