"""Any number of each service on one machine, found without being told."""

import asyncio
import time
from pathlib import Path

import pytest

from tests.support import load
from tests.support.mesh import Mesh, Service, wait_until

pytestmark = pytest.mark.mesh


def ask(url: str, count: int) -> list[str]:
    bodies = [
        {"model": "tiny", "prompt": f"{i} and", "max_tokens": 4, "seed": i} for i in range(count)
    ]
    results = asyncio.run(load.complete_all(url, bodies, concurrency=8))
    return [result["choices"][0]["text"] for result in results]


def requests_taken(tokenizer: Service) -> float:
    return tokenizer.metric("tokenize_requests_total")


def test_two_of_each_share_the_work_and_a_third_tokenizer_takes_some_within_5_s(
    tiny_model: Path,
) -> None:
    with Mesh(
        tiny_model,
        gateways=2,
        tokenizers=2,
        workers=2,
        tokenizer_flags=("--served-model-name", "tiny"),
        worker_flags=("--kv-cache-memory", "16MiB", "--cpu-threads", "1"),
    ) as mesh:
        first, second = (gateway.url for gateway in mesh.of("gateway"))

        def all_took_some() -> bool:
            """The mesh is ready with one of each; the other may need a moment more."""
            assert ask(first, 24) == ask(second, 24)
            return all(requests_taken(tokenizer) > 0 for tokenizer in mesh.of("tokenizer")) and all(
                worker.metric("worker_step_seconds_count") > 0 for worker in mesh.of("worker")
            )

        wait_until(all_took_some, "all tokenizers and workers have taken work", deadline_s=30)

        third = mesh.spawn("tokenizer", "tokenizer-by-hand")
        wait_until(lambda: is_ready(third), "third tokenizer ready")
        began = time.monotonic()
        while requests_taken(third) == 0:
            ask(first, 8)
            assert time.monotonic() - began < 5.0, "no work within 5 s of being ready"


def is_ready(service: Service) -> bool:
    import httpx

    try:
        return httpx.get(f"{service.url}/health/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_two_schedulers_share_the_load_of_the_tokenizers(tiny_model: Path) -> None:
    with Mesh(
        tiny_model,
        schedulers=2,
        workers=1,
        tokenizer_flags=("--served-model-name", "tiny"),
        worker_flags=("--kv-cache-memory", "16MiB", "--cpu-threads", "1"),
    ) as mesh:

        def workers() -> list[float]:
            return [s.metric("num_workers") for s in mesh.of("scheduler")]

        def finished() -> list[float]:
            return [s.metric("scheduler_requests_finished_total") for s in mesh.of("scheduler")]

        def both_finished_some() -> bool:
            ask(mesh.url, 32)
            return all(count > 0 for count in finished())

        wait_until(lambda: sorted(workers()) == [0, 1], "both are up, one has the worker")
        mesh.spawn("worker", "worker-by-hand")
        wait_until(lambda: workers() == [1, 1], "the new worker chose the other")
        wait_until(both_finished_some, "both schedulers have finished requests", deadline_s=30)
