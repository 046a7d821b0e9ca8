"""The thread in which the model computes: plans in, in order, results out to the event loop.

The next plan is already queued here when a step ends, so the device does not wait for a socket; and
no socket waits for the device. One thread does all of it, loading too: OpenMP keeps a pool of
threads for each thread that computes.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

from common.messages import StepPlan, StepRejected, StepResult
from services.worker.engine import Engine

QUIET_S: Final = 0.2  # without a plan; services that share the cores may have work after less

Outcome: TypeAlias = StepResult | StepRejected


class LoadingStopped(Exception):
    """The process ends while its model is still being loaded."""


@dataclass(frozen=True, slots=True)
class _Reset:
    """Forget all sequences before the next plan."""


class DeviceThread:
    """Made and used in the event loop; the engine is changed by the thread alone."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._work: queue.SimpleQueue[tuple[int, StepPlan | _Reset] | None] = queue.SimpleQueue()
        #: how often `reset` was called; plans and results of an earlier epoch are void
        self._epoch = 0
        #: plans submitted in this epoch whose outcome has not been delivered
        self._num_pending = 0
        self._stopping = threading.Event()

    @property
    def num_pending(self) -> int:
        """Plans on their way through the device."""
        return self._num_pending

    async def load(self, make_engine: Callable[[], Engine]) -> Engine:
        """Make the engine, in the thread.

        Raises:
            whatever `make_engine` raises.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, make_engine)

    async def run(self, engine: Engine, deliver: Callable[[Outcome], None]) -> None:
        """Run plans until `stop`.

        An outcome waits until the next plan, if there is one, is ready to compute: the event loop
        needs the interpreter to send it, and would keep the thread from it just when the device has
        nothing to do.

        Args:
            deliver: called in the event loop with each plan's outcome, in order.

        Raises:
            whatever the engine raises: the device is in an unknown state, the process must end.
        """
        loop = asyncio.get_running_loop()

        def finished(epoch: int, outcome: Outcome) -> None:
            if epoch == self._epoch:
                self._num_pending -= 1
                deliver(outcome)

        waiting: list[tuple[int, Outcome]] = []  # at most one

        def hand_over() -> None:
            while waiting:
                loop.call_soon_threadsafe(finished, *waiting.pop())

        def work() -> None:
            while (item := self._next(engine, hand_over)) is not None:
                epoch, task = item
                if isinstance(task, _Reset):
                    engine.reset()
                elif epoch == self._epoch:
                    outcome = engine.step(task, hand_over)
                    hand_over()  # a plan that was refused, or is empty, has not got so far
                    waiting.append((epoch, outcome))

        await loop.run_in_executor(self._executor, work)

    def _next(
        self, engine: Engine, hand_over: Callable[[], None]
    ) -> tuple[int, StepPlan | _Reset] | None:
        """What to do next, in the thread; if that takes a while, memory is made ready meanwhile."""
        with suppress(queue.Empty):
            return self._work.get_nowait()
        hand_over()
        try:
            return self._work.get(timeout=QUIET_S)
        except queue.Empty:
            while self._work.empty() and engine.prepare_memory():
                pass
            return self._work.get()

    def submit(self, plan: StepPlan) -> None:
        """Queue a plan behind those already there."""
        self._num_pending += 1
        self._work.put((self._epoch, plan))

    def reset(self) -> None:
        """Void what is queued and running, and forget all sequences."""
        self._epoch += 1
        self._num_pending = 0
        self._work.put((self._epoch, _Reset()))

    def stop_if_asked(self) -> None:
        """For the thread to call now and then while it loads.

        Raises:
            LoadingStopped: `stop` was called.
        """
        if self._stopping.is_set():
            raise LoadingStopped

    def stop(self) -> None:
        """End the thread after the step that is running; does not wait for it."""
        self._stopping.set()
        self._epoch += 1
        self._work.put(None)
        self._executor.shutdown(wait=False, cancel_futures=True)
