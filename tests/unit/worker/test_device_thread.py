"""Order, voiding and errors of the thread that computes."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from common.messages import StepPlan, StepResult
from services.worker.device_thread import DeviceThread, LoadingStopped, Outcome
from services.worker.engine import Engine


class StandInEngine:
    """Notes what it is told; a step waits until the test lets it go on."""

    def __init__(self) -> None:
        self.calls: list[int | str] = []
        self.go_on = threading.Semaphore(0)
        self.began = threading.Semaphore(0)
        self.preparing = threading.Semaphore(0)
        self.may_prepare = threading.Event()
        self.may_prepare.set()
        self.num_pieces = 0  #: of memory, that are left to take
        self.taking = threading.Semaphore(0)

    def prepare_memory(self) -> bool:
        if not self.num_pieces:
            return False
        self.taking.release()
        assert self.go_on.acquire(timeout=10)
        self.num_pieces -= 1
        self.calls.append("memory")
        return self.num_pieces > 0

    def step(self, plan: StepPlan, before_computing: Callable[[], None]) -> StepResult:
        self.preparing.release()
        assert self.may_prepare.wait(10)
        before_computing()
        self.began.release()
        assert self.go_on.acquire(timeout=10)
        if plan.step_id < 0:
            raise RuntimeError("out of memory")
        self.calls.append(plan.step_id)
        return StepResult(plan.step_id, (), 1)

    def reset(self) -> None:
        self.calls.append("reset")


class Bench:
    """A device thread running a stand-in, for as long as the block lasts."""

    def __init__(self) -> None:
        self.engine = StandInEngine()
        self.outcomes: asyncio.Queue[Outcome] = asyncio.Queue()

    async def __aenter__(self) -> "Bench":
        self.thread = DeviceThread()
        engine = cast("Engine", self.engine)
        self.running = asyncio.create_task(self.thread.run(engine, self.outcomes.put_nowait))
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.thread.stop()
        self.engine.go_on.release(100)
        await asyncio.wait({self.running}, timeout=10)

    async def outcome(self) -> int:
        return (await asyncio.wait_for(self.outcomes.get(), 10)).step_id

    async def wait_for_step(self) -> None:
        await asyncio.to_thread(self.engine.began.acquire, timeout=10)


def test_plans_run_in_order_and_results_come_in_order() -> None:
    async def scenario() -> None:
        async with Bench() as bench:
            for step_id in (1, 2, 3):
                bench.thread.submit(StepPlan(step_id, ()))
            assert bench.thread.num_pending == 3
            bench.engine.go_on.release(3)

            assert [await bench.outcome() for _ in range(3)] == [1, 2, 3]
            assert bench.thread.num_pending == 0

    asyncio.run(scenario())


def test_an_outcome_waits_until_the_next_plan_is_about_to_compute() -> None:
    async def scenario() -> None:
        async with Bench() as bench:
            bench.thread.submit(StepPlan(1, ()))
            bench.thread.submit(StepPlan(2, ()))
            await bench.wait_for_step()
            bench.engine.may_prepare.clear()
            bench.engine.go_on.release()
            for _ in range(2):
                await asyncio.to_thread(bench.engine.preparing.acquire, timeout=10)
            assert bench.engine.calls == [1]
            assert bench.outcomes.empty()

            bench.engine.may_prepare.set()
            assert await bench.outcome() == 1  # 2 runs, and cannot end yet
            bench.engine.go_on.release()
            assert await bench.outcome() == 2

    asyncio.run(scenario())


def test_reset_voids_what_is_queued_and_what_is_running() -> None:
    async def scenario() -> None:
        async with Bench() as bench:
            bench.thread.submit(StepPlan(1, ()))
            bench.thread.submit(StepPlan(2, ()))
            await bench.wait_for_step()
            bench.thread.reset()
            bench.thread.submit(StepPlan(3, ()))
            bench.engine.go_on.release(2)

            assert await bench.outcome() == 3
            assert bench.engine.calls == [1, "reset", 3]
            assert bench.outcomes.empty()

    asyncio.run(scenario())


def test_memory_is_made_ready_while_nobody_asks_for_a_step() -> None:
    async def scenario() -> None:
        async with Bench() as bench:
            bench.engine.num_pieces = 2
            await asyncio.to_thread(bench.engine.taking.acquire, timeout=10)
            bench.thread.submit(StepPlan(1, ()))
            bench.engine.go_on.release(2)

            assert await bench.outcome() == 1
            assert bench.engine.calls == ["memory", 1]
            bench.engine.go_on.release()
            await asyncio.to_thread(bench.engine.taking.acquire, timeout=10)
            bench.thread.submit(StepPlan(2, ()))
            bench.engine.go_on.release()

            assert await bench.outcome() == 2
            assert bench.engine.calls == ["memory", 1, "memory", 2]

    asyncio.run(scenario())


def test_an_error_of_the_device_ends_the_run() -> None:
    async def scenario() -> None:
        async with Bench() as bench:
            bench.thread.submit(StepPlan(-1, ()))
            bench.engine.go_on.release()

            with pytest.raises(RuntimeError, match="out of memory"):
                await asyncio.wait_for(bench.running, 10)

    asyncio.run(scenario())


def test_loading_gives_up_when_the_process_is_to_stop() -> None:
    async def scenario() -> None:
        thread, began = DeviceThread(), threading.Event()

        def load() -> Engine:
            began.set()
            while True:
                thread.stop_if_asked()

        loading = asyncio.create_task(thread.load(load))
        await asyncio.to_thread(began.wait, 10)
        thread.stop()
        with pytest.raises(LoadingStopped):
            await asyncio.wait_for(loading, 10)

    asyncio.run(scenario())
