"""The event loop of a simulation: a scheduler core, its workers and a clock that jumps.

Everything that happens is an action at a time; the next one is run, and the clock stands where it
stands. Equal actions give equal results, to the last bit.
"""

import heapq
from collections.abc import Callable
from functools import partial
from itertools import count

from common.errors import SplitfuseError
from common.messages import GenerateRequest, StepResult, TokenDelta
from common.token_ids import num_ids
from common.workload.timeline import RequestShape, Timeline
from services.scheduler.core import SchedulerCore
from services.scheduler.events import (
    EmitTokens,
    Event,
    FailRequest,
    Instruction,
    RefuseWorker,
    RequestArrived,
    RequestCancelled,
    SendStep,
    StepFinished,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from services.scheduler.simulation.host import HostCosts
from services.scheduler.simulation.worker import SimulatedWorker

OWNER = "client"
CANCELLED = "cancelled"  # `Timeline.failure` of a request that its client gave up
TICK_S = 1.0


class SimulationStalled(SplitfuseError):
    """Requests wait, and nothing will ever happen: no worker can run them."""


class Simulator:
    """Runs actions in the order of their times.

    Args:
        core: fresh, without workers.
        host: what happens between client, scheduler and workers.
        on_end: is given each request that has ended, when its client knows.
        observe: is given each event and what followed from it, at its time.
    """

    def __init__(
        self,
        core: SchedulerCore,
        host: HostCosts,
        on_end: Callable[[str, Timeline], None],
        observe: Callable[[Event, list[Instruction], float], None] | None = None,
    ) -> None:
        self.core = core
        self.now = 0.0  #: seconds
        self.num_events = 0  #: that the core has handled
        self.workers: dict[str, SimulatedWorker] = {}
        self._host = host
        self._on_end = on_end
        self._observe = observe
        self._timelines: dict[str, Timeline] = {}  # of requests that have not ended
        self._actions: list[tuple[float, int, Callable[[], None]]] = []
        self._is_ticking = False
        self._order = count()  # among actions at one time, the first scheduled runs first

    @property
    def num_open(self) -> int:
        """Requests that were sent and have not ended."""
        return len(self._timelines)

    def at(self, at_s: float, action: Callable[[], None]) -> None:
        """Run an action at a time that is not past."""
        heapq.heappush(self._actions, (at_s, next(self._order), action))

    def run(self, until_s: float = float("inf")) -> None:
        """Run until nothing is left to do, or the clock has come to `until_s`.

        Raises:
            SimulationStalled: requests are left over and nobody will run them.
        """
        actions = self._actions
        if not self._is_ticking:
            self._is_ticking = True
            self.at(self.now + TICK_S, self._tick)
        while actions and actions[0][0] <= until_s:
            self.now, _, action = heapq.heappop(actions)
            action()

    def attach(self, name: str, worker: SimulatedWorker) -> None:
        """A worker joins."""
        self.workers[name] = worker
        self._handle(WorkerJoined(name, worker.join))

    def lose(self, name: str) -> None:
        """A worker is gone with all that is in flight."""
        del self.workers[name]
        self._handle(WorkerLost(name))

    def drain(self, name: str) -> None:
        """A worker finishes what runs on it and takes nothing more."""
        self._handle(WorkerDraining(name))

    def send(self, message: GenerateRequest) -> Timeline:
        """A client sends a request."""
        num_prompt = num_ids(message.prompt_ids)
        shape = RequestShape(
            num_prompt, message.sampling.max_tokens or 0, message.tenant, message.priority
        )
        timeline = self._timelines[message.request_id] = Timeline(shape, self.now)
        arrives_at = self.now + self._host.until_scheduler_s(num_prompt)
        self.at(arrives_at, partial(self._arrive, message))
        return timeline

    def cancel(self, request_id: str) -> None:
        """A client gives its request up, if that has not ended."""
        timeline = self._timelines.get(request_id)
        if timeline is not None:
            timeline.failure = CANCELLED
            self._handle(RequestCancelled(OWNER, request_id, "client_disconnected"))
            self._end(request_id, self.now)

    def _arrive(self, message: GenerateRequest) -> None:
        if message.request_id in self._timelines:
            self._handle(RequestArrived(OWNER, message))

    def _tick(self) -> None:
        self._handle(Tick())
        if self._actions:
            self.at(self.now + TICK_S, self._tick)
            return
        self._is_ticking = False
        if self._timelines:
            raise SimulationStalled(
                f"{self.num_open} requests wait at {self.now:.3f} s for "
                f"{len(self.workers)} workers that have nothing to do"
            )

    def _handle(self, event: Event) -> None:
        instructions = self.core.handle(event, self.now)
        self.num_events += 1
        if self._observe is not None:
            self._observe(event, instructions, self.now)
        for instruction in instructions:
            match instruction:
                case SendStep():
                    self._step(instruction)
                case EmitTokens(_, message):
                    received_at = self.now + self._host.reply_ms / 1e3
                    for delta in message.deltas:
                        self._receive(delta, received_at)
                case FailRequest(_, failure):
                    self._timelines[failure.request_id].failure = failure.code
                    self._end(failure.request_id, self.now)
                case RefuseWorker(worker, reason):
                    raise SimulationStalled(f"worker {worker} is refused: {reason}")
                case _:
                    pass

    def _step(self, step: SendStep) -> None:
        worker = self.workers[step.worker]
        link_s = self._host.link_ms / 1e3
        ends_at, result = worker.run(step.plan, step.shape, self.now + link_s)
        self.at(ends_at + link_s, partial(self._finished, step.worker, worker, result))

    def _finished(self, name: str, worker: SimulatedWorker, result: StepResult) -> None:
        if self.workers.get(name) is worker:  # else it was lost with the step
            self._handle(StepFinished(name, result))

    def _receive(self, delta: TokenDelta, received_at: float) -> None:
        timeline = self._timelines[delta.request_id]
        num_tokens = num_ids(delta.token_ids)
        if num_tokens:
            timeline.token_at.append(received_at)
            timeline.num_output_tokens += num_tokens
        if delta.finish_reason is not None:
            self._end(delta.request_id, received_at)

    def _end(self, request_id: str, known_at: float) -> None:
        timeline = self._timelines.pop(request_id)
        self.at(known_at, partial(self._on_end, request_id, timeline))
