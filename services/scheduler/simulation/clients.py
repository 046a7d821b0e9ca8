"""Simulated clients: they send what a load says, when it says."""

from collections.abc import Callable
from functools import partial

from common.workload.load import Load
from common.workload.timeline import Timeline
from services.scheduler.core import SchedulerCore
from services.scheduler.events import Event, Instruction
from services.scheduler.simulation.host import HostCosts
from services.scheduler.simulation.requests import Requests
from services.scheduler.simulation.simulator import Simulator


class Clients:
    """Plays a load to a core.

    Args:
        core: fresh, without workers; they are attached through `simulator`.
        load: its requests are sent once each.
        requests: makes their messages.
        host: see `Simulator`.
        on_end: takes each timeline that is complete, in order of ends.
        patience_s: for the request with a number, after how many seconds its client gives it up;
            None: never.
        observe: see `Simulator`.
    """

    def __init__(
        self,
        core: SchedulerCore,
        load: Load,
        requests: Requests,
        host: HostCosts,
        on_end: Callable[[Timeline], None],
        patience_s: Callable[[int], float | None] = lambda _: None,
        observe: Callable[[Event, list[Instruction], float], None] | None = None,
    ) -> None:
        self.simulator = Simulator(core, host, self._ended, observe)
        self._load = load
        self.requests = requests
        self._on_end = on_end
        self._patience_s = patience_s
        self._num_sent = 0
        if load.is_closed:
            for start_s in load.starts_s:
                self.simulator.at(start_s, self._send_next)
        else:
            self._schedule_next()

    def _schedule_next(self) -> None:
        """Of an open loop only the next arrival is scheduled, so that memory does not grow."""
        if self._num_sent < len(self._load.shapes):
            at_s = self._load.starts_s[self._num_sent]
            self.simulator.at(at_s, self._send_and_schedule)

    def _send_and_schedule(self) -> None:
        self._send_next()
        self._schedule_next()

    def _send_next(self) -> None:
        number = self._num_sent
        if number == len(self._load.shapes):
            return  # the load is used up
        self._num_sent += 1
        shape = self._load.shapes[number]
        simulator = self.simulator
        message = self.requests.make(number, shape)
        simulator.send(message).shape = shape
        patience_s = self._patience_s(number)
        if patience_s is not None:
            simulator.at(simulator.now + patience_s, partial(simulator.cancel, message.request_id))

    def _ended(self, request_id: str, timeline: Timeline) -> None:
        self.requests.forget(request_id)
        self._on_end(timeline)
        if self._load.is_closed:
            self._send_next()
