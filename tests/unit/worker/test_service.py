"""The shell: whom it joins, what it answers, when it is done. A real engine, a link in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from transformers import PreTrainedModel

from common.config import WorkerConfig, load_config
from common.errors import StartupError
from common.link import LinkEvent, Peer
from common.messages import (
    AnyMessage,
    CancelRequest,
    Chunk,
    Heartbeat,
    NewSequence,
    SamplingParams,
    StepPlan,
    StepRejected,
    StepResult,
    WorkerJoin,
)
from common.token_ids import pack_ids
from services.worker.service import QUIET_S, WorkerService
from tests.support.memory_link import MemoryLink
from tests.support.set_clock import SetClock

ALICE, BOB = (Peer("scheduler", name, f"{name}-1") for name in ("alice", "bob"))
IDLE = Heartbeat(ready=False, draining=False)
DEADLINE_S = 20.0


class BusyLink(MemoryLink):
    """Also says how often it refused a message, and when all events were read."""

    def __init__(self) -> None:
        super().__init__()
        self._refusals = asyncio.Semaphore(0)
        self._read = asyncio.Event()

    def send(self, instance_id: str, message: AnyMessage) -> bool:
        taken = super().send(instance_id, message)
        if not taken:
            self._refusals.release()
        return taken

    async def receive(self) -> LinkEvent:
        if self._events.empty():
            self._read.set()
        return await super().receive()

    async def wait_refused(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            for _ in range(count):
                await self._refusals.acquire()

    async def wait_read(self) -> None:
        self._read.clear()
        await asyncio.wait_for(self._read.wait(), DEADLINE_S)


class Mesh:
    """A running worker, the schedulers' side of its link, and its clock."""

    def __init__(self, model: Path, *flags: str) -> None:
        config = load_config(
            WorkerConfig,
            [
                *(flags or ("--no-calibrate",)),
                *("--model", str(model), "--scheduler-address", "ipc:///unused"),
                *("--dtype", "float32", "--device", "cpu", "--cpu-threads", "1"),
                *("--block-size", "8", "--kv-cache-memory", "1MiB"),
            ],
        )
        self.link, self.clock = BusyLink(), SetClock()
        identity = Peer("worker", "worker-0", "w1")
        self.service = WorkerService(config, identity, lambda: self.link, self.clock)

    async def joined(self, count: int = 1) -> list[str]:
        """Whom the worker joined, in order, once there are so many."""
        await self.link.wait_sent(count, DEADLINE_S)
        return [i for i, message in self.link.sent if isinstance(message, WorkerJoin)]

    async def answer(self, index: int) -> tuple[str, Any]:
        return (await self.link.wait_sent(index + 1, DEADLINE_S))[index]


@asynccontextmanager
async def running(model: Path, *flags: str) -> AsyncIterator[Mesh]:
    mesh = Mesh(model, *flags)
    await mesh.service.start()
    serving = asyncio.create_task(mesh.service.run())
    try:
        yield mesh
    finally:
        serving.cancel()
        await asyncio.wait({serving})
        await mesh.service.stop("test is over")


def a_plan(step_id: int = 1, sequence_id: int = 1, computed: int = 0) -> StepPlan:
    """A prompt of three tokens, or one more token of it."""
    tokens = (5, 6, 7)
    new = NewSequence(
        sequence_id, pack_ids(tokens), 3, 0, pack_ids([0]), SamplingParams(temperature=0.0)
    )
    chunk = Chunk(sequence_id, computed, 1 if computed else 3, b"", sample=True)
    return StepPlan(step_id, (chunk,), () if computed else (new,))


def num_sequences() -> float | None:
    return REGISTRY.get_sample_value("splitfuse:worker_num_sequences")


def scenario(test: Callable[[Mesh], Any], model: Path) -> None:
    async def play() -> None:
        async with running(model) as mesh:
            await test(mesh)

    asyncio.run(play())


@pytest.fixture
def model(tiny_llama: tuple[Path, PreTrainedModel]) -> Path:
    return tiny_llama[0]


def test_it_loads_then_joins_the_scheduler_with_fewest_workers(model: Path) -> None:
    async def test(mesh: Mesh) -> None:
        assert mesh.link.status == Heartbeat(ready=True, draining=False)
        mesh.link.peer_up(ALICE)
        mesh.link.peer_up(BOB)
        mesh.link.peer_changed(BOB, Heartbeat(ready=True, draining=False, num_workers=1))

        assert await mesh.joined() == [BOB.instance_id]
        assert mesh.service.is_ready
        _, join = await mesh.answer(0)
        assert (join.block_size, join.dtype, join.max_model_len) == (8, "float32", 256)

    scenario(test, model)


def test_it_tells_the_scheduler_what_passes_cost_unless_that_was_not_measured(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITFUSE_CACHE", str(tmp_path))  # of a machine never measured

    async def joining(flag: str) -> WorkerJoin:
        async with running(model, flag) as mesh:
            mesh.link.peer_up(ALICE, IDLE)
            _, join = await mesh.answer(0)
            assert isinstance(join, WorkerJoin)
            return join

    assert not asyncio.run(joining("--no-calibrate")).calibration
    measured = asyncio.run(joining("--calibrate")).calibration
    assert measured
    assert all(timing.step_ns > 0 for timing in measured)


def test_it_stays_with_its_scheduler_when_another_comes(model: Path) -> None:
    async def test(mesh: Mesh) -> None:
        mesh.link.peer_up(ALICE, Heartbeat(ready=True, draining=False, num_workers=5))
        await mesh.joined()
        mesh.link.peer_up(BOB, IDLE)
        mesh.link.deliver(ALICE, a_plan())

        assert (await mesh.answer(1))[0] == ALICE.instance_id
        assert await mesh.joined(2) == [ALICE.instance_id]

    scenario(test, model)


def test_plans_are_answered_in_order(model: Path) -> None:
    async def test(mesh: Mesh) -> None:
        mesh.link.peer_up(ALICE, IDLE)
        await mesh.joined()
        mesh.link.deliver(ALICE, a_plan(1))
        mesh.link.deliver(ALICE, a_plan(2, computed=3))
        mesh.link.deliver(ALICE, a_plan(3, sequence_id=9, computed=3))

        answers = [(await mesh.answer(i))[1] for i in (1, 2, 3)]
        assert [type(a) for a in answers] == [StepResult, StepResult, StepRejected]
        assert [a.step_id for a in answers] == [1, 2, 3]
        assert answers[2].sequence_ids == (9,)

    scenario(test, model)


def test_when_its_scheduler_is_lost_it_forgets_and_joins_again(model: Path) -> None:
    async def test(mesh: Mesh) -> None:
        mesh.link.peer_up(ALICE, IDLE)
        await mesh.joined()
        mesh.link.deliver(ALICE, a_plan(1))
        await mesh.answer(1)
        assert num_sequences() == 1
        mesh.link.peer_down(ALICE)
        mesh.link.peer_up(BOB, IDLE)
        assert (await mesh.answer(2))[0] == BOB.instance_id
        assert num_sequences() == 0
        mesh.link.deliver(BOB, a_plan(1, computed=3))  # knows of it, but this worker must not

        peer, answer = await mesh.answer(3)
        assert peer == BOB.instance_id
        assert isinstance(answer, StepRejected)

    scenario(test, model)


def test_a_plan_of_a_scheduler_it_has_not_joined_is_dropped(model: Path) -> None:
    async def test(mesh: Mesh) -> None:
        mesh.link.peer_up(ALICE, IDLE)
        await mesh.joined()
        mesh.link.peer_up(BOB, IDLE)
        mesh.link.deliver(BOB, a_plan(7))
        mesh.link.deliver(ALICE, CancelRequest("r", "deadline"))  # not a worker's business
        mesh.link.deliver(ALICE, a_plan(8))

        peer, answer = await mesh.answer(1)
        assert (peer, answer.step_id) == (ALICE.instance_id, 8)

    scenario(test, model)


def test_a_result_that_the_link_does_not_take_is_sent_later(model: Path) -> None:
    async def test(mesh: Mesh) -> None:
        mesh.link.peer_up(ALICE, IDLE)
        await mesh.joined()
        mesh.link.full.add(ALICE.instance_id)
        mesh.link.deliver(ALICE, a_plan(1))
        mesh.link.deliver(ALICE, a_plan(2, computed=3))
        await mesh.link.wait_refused(2)
        assert not mesh.service.is_idle
        mesh.link.full.clear()

        assert [(await mesh.answer(i))[1].step_id for i in (1, 2)] == [1, 2]

    scenario(test, model)


def test_joining_is_tried_again_when_the_link_does_not_take_it(model: Path) -> None:
    async def test(mesh: Mesh) -> None:
        mesh.link.full.add(ALICE.instance_id)
        mesh.link.peer_up(ALICE, IDLE)
        await mesh.link.wait_refused(1)
        mesh.link.full.clear()

        assert await mesh.joined() == [ALICE.instance_id]

    scenario(test, model)


def test_while_draining_it_runs_what_comes_until_the_scheduler_is_quiet(model: Path) -> None:
    async def test(mesh: Mesh) -> None:
        mesh.link.peer_up(ALICE, IDLE)
        await mesh.joined()
        mesh.link.deliver(ALICE, a_plan(1))
        await mesh.answer(1)
        mesh.service.drain()
        assert mesh.link.status == Heartbeat(ready=False, draining=True)
        was_idle = mesh.service.is_idle  # no: the next plan may be on its way
        mesh.link.deliver(ALICE, a_plan(2, computed=3))
        await mesh.answer(2)
        mesh.clock.time_s += QUIET_S

        assert (was_idle, mesh.service.is_idle) == (False, True)
        assert not mesh.service.is_ready

    scenario(test, model)


def test_a_draining_worker_joins_nobody(model: Path) -> None:
    async def test(mesh: Mesh) -> None:
        mesh.service.drain()
        mesh.link.peer_up(ALICE, IDLE)
        mesh.link.deliver(ALICE, CancelRequest("r", "deadline"))
        await mesh.link.wait_read()

        assert mesh.link.sent == []
        assert mesh.service.is_idle

    scenario(test, model)


def test_a_model_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    async def play() -> None:
        mesh = Mesh(tmp_path)
        with pytest.raises(StartupError, match="cannot read"):
            await mesh.service.start()
        await mesh.service.stop("failed")
        assert mesh.link.status is None

    asyncio.run(play())


def test_an_error_in_the_engine_ends_the_service(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        mesh = Mesh(model)
        await mesh.service.start()
        engine: Any = mesh.service._engine

        def fail(_batch: Any) -> None:
            raise MemoryError("no more")

        monkeypatch.setattr(engine._backend, "run", fail)
        serving = asyncio.create_task(mesh.service.run())
        mesh.link.peer_up(ALICE, IDLE)
        await mesh.joined()
        mesh.link.deliver(ALICE, a_plan())
        with pytest.raises(ExceptionGroup) as crash:
            await asyncio.wait_for(serving, DEADLINE_S)
        assert crash.group_contains(MemoryError)
        await mesh.service.stop("crashed")

    asyncio.run(play())
