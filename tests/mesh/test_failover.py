"""kill -9 of any process behind the gateway, under load: nobody notices."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import load
from tests.support.mesh import Mesh, wait_until

NUM_STREAMS = 20
NUM_TOKENS = 150
INTERVALS = (1, 1, 3, 8)  # tokens per event, of one stream in four each

pytestmark = pytest.mark.mesh


def bodies() -> list[dict[str, object]]:
    """Sampled at temperature 1 with a seed each: any lost or repeated token changes the rest."""
    return [
        {
            "model": "tiny",
            "prompt": f"Stream {index}: " + "running generations go first " * (index + 1),
            "max_tokens": NUM_TOKENS,
            "temperature": 1.0,
            "seed": 1000 + index,
            "ignore_eos": True,
            "stream_interval": INTERVALS[index % len(INTERVALS)],
        }
        for index in range(NUM_STREAMS)
    ]


async def all_streams(mesh: Mesh, victim: str | None) -> list[load.Stream]:
    """Run all streams; once each has begun, kill the victim and start it again."""
    progress: asyncio.Queue[int] = asyncio.Queue()
    async with load.client() as http:
        tasks = [
            asyncio.create_task(load.stream(http, mesh.url, progress, **body)) for body in bodies()
        ]
        if victim is not None:
            seen = 0
            while seen < NUM_STREAMS * 4:
                await progress.get()
                seen += 1
            assert not all(task.done() for task in tasks)
            await asyncio.to_thread(kill_and_restart, mesh, victim)
        return await asyncio.gather(*tasks)


def kill_and_restart(mesh: Mesh, kind: str) -> None:
    service = mesh.of(kind)[0]
    mesh.kill(service)
    mesh.restart(service)


@pytest.fixture(scope="module")
def mesh(tiny_model: Path) -> Iterator[Mesh]:
    with Mesh(
        tiny_model,
        tokenizer_flags=("--served-model-name", "tiny"),
        worker_flags=("--kv-cache-memory", "64MiB", "--cpu-threads", "1"),
    ) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(mesh: Mesh) -> list[load.Stream]:
    return asyncio.run(all_streams(mesh, None))


def test_tokens_come_together_where_a_stream_asks_for_it(undisturbed: list[load.Stream]) -> None:
    events: dict[int, list[int]] = {}
    for index, stream in enumerate(undisturbed):
        events.setdefault(INTERVALS[index % len(INTERVALS)], []).append(stream.events)

    for interval, counts in events.items():
        assert max(counts) <= NUM_TOKENS / interval + 4  # the first, the end, the usage
    # Not all tokens end a character, and a client that lags gets fewer, larger events.
    assert min(events[1]) > max(events[8])


@pytest.mark.parametrize("victim", ["worker", "tokenizer", "scheduler"])
def test_every_stream_completes_with_the_same_text_when_one_dies(
    victim: str, mesh: Mesh, undisturbed: list[load.Stream]
) -> None:
    streams = asyncio.run(all_streams(mesh, victim))

    assert [stream.errors for stream in streams] == [[]] * NUM_STREAMS
    assert [stream.text for stream in streams] == [stream.text for stream in undisturbed]
    assert {stream.finish_reason for stream in streams} == {"length"}
    assert {stream.usage["completion_tokens"] for stream in streams} == {NUM_TOKENS}
    wait_until(lambda: mesh.of("scheduler")[0].metric("num_requests_running") == 0, "all over")
