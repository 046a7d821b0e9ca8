"""The worker's shell: plans from the link to the device thread, results from there to the link.

It joins one scheduler and stays with it until that is lost; then it forgets everything and joins
again, which may be the same one restarted.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping

import msgspec
import structlog

from common.clock import Clock, MonotonicClock
from common.config import WorkerConfig
from common.link import Link, LinkEvent, Peer, PeerDown, Received
from common.messages import AnyMessage, Heartbeat, StepPlan, StepResult
from common.metrics import ITL_BUCKETS_S, counter, gauge, histogram
from common.transport import Outbox
from services.worker.calibration_store import known_or_measured
from services.worker.device_thread import DeviceThread, Outcome
from services.worker.engine import Engine
from services.worker.schedulers import choose_scheduler

# A scheduler with anything to run here sends the next plan within milliseconds of a result. One
# that has been quiet for so long while we drain has nothing left.
QUIET_S = 1.0
# Until a message that the link did not take is tried again, and from an event to joining.
RETRY_S = 0.05

STEP_SECONDS = histogram("worker_step_seconds", "Duration of a forward pass", ITL_BUCKETS_S)
STEPS_REJECTED = counter("worker_steps_rejected", "Plans that could not be resolved")
NUM_SEQUENCES = gauge("worker_num_sequences", "Sequences held")

logger = structlog.get_logger(__name__)


class WorkerService:
    """A `common.lifecycle.Service`."""

    def __init__(
        self,
        config: WorkerConfig,
        identity: Peer,
        open_link: Callable[[], Link] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._config = config
        self._open_link = open_link or (lambda: Outbox(config.scheduler_address, identity, config))
        self._clock = clock or MonotonicClock()
        self._device = DeviceThread()
        self._engine: Engine | None = None
        self._link: Link | None = None
        #: instance id of the scheduler that we have joined
        self._scheduler: str | None = None
        #: results that the link has not taken yet, in order; at most the plans in flight
        self._unsent: deque[AnyMessage] = deque()
        self._retry: asyncio.TimerHandle | None = None
        self._draining = False
        self._last_plan_at = float("-inf")

    @property
    def addresses(self) -> Mapping[str, str]:
        return {"scheduler": self._config.scheduler_address}

    @property
    def is_ready(self) -> bool:
        return self._scheduler is not None and not self._draining

    @property
    def is_idle(self) -> bool:
        quiet = self._clock.now() - self._last_plan_at >= QUIET_S
        return not self._unsent and self._device.num_pending == 0 and quiet

    async def start(self) -> None:
        self._engine = await self._device.load(self._load)
        self._link = self._open_link()
        self._report(self._link)

    async def run(self) -> None:
        engine, link = self._engine, self._link
        if engine is None or link is None:
            raise RuntimeError("run() before start()")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._device.run(engine, lambda o: self._stepped(engine, link, o)))
            tasks.create_task(self._listen(engine, link))

    def drain(self) -> None:
        self._draining = True
        if self._link is not None:
            self._report(self._link)

    async def stop(self, reason: str) -> None:
        self._device.stop()
        if self._retry is not None:
            self._retry.cancel()
        if self._link is not None:
            await self._link.close(reason)

    def _load(self) -> Engine:
        config, checkpoint = self._config, self._device.stop_if_asked
        engine = Engine(config.model, config, config.max_model_len, checkpoint)
        if config.calibrate:
            calibration = known_or_measured(
                engine, config.model, config, self._clock.now, checkpoint
            )
            engine.join = msgspec.structs.replace(engine.join, calibration=calibration)
        return engine

    def _report(self, link: Link) -> None:
        link.set_status(Heartbeat(ready=not self._draining, draining=self._draining))

    async def _listen(self, engine: Engine, link: Link) -> None:
        while True:
            self._handle(await link.receive())
            if (
                self._scheduler is None
            ):  # a moment later: schedulers found together come up together
                self._retry_later(engine, link)

    def _handle(self, event: LinkEvent) -> None:
        match event:
            case Received(peer, StepPlan() as plan) if peer.instance_id == self._scheduler:
                self._last_plan_at = self._clock.now()
                self._device.submit(plan)
            case Received(peer, message):
                logger.warning("message dropped", peer=peer.name, type=type(message).__name__)
            case PeerDown(peer, reason) if peer.instance_id == self._scheduler:
                logger.warning("scheduler lost", peer=peer.name, reason=reason)
                self._leave()

    def _leave(self) -> None:
        self._scheduler = None
        self._unsent.clear()
        self._device.reset()
        NUM_SEQUENCES.set(0)

    def _attach(self, engine: Engine, link: Link) -> None:
        """Join a scheduler if we have none; tried soon after every event."""
        if self._scheduler is not None or self._draining:
            return
        heartbeats = {i: beat for i in link.peers if (beat := link.heartbeat_of(i)) is not None}
        chosen = choose_scheduler(link.peers, heartbeats)
        if chosen is None:
            return
        if link.send(chosen, engine.join):
            self._scheduler = chosen
            logger.info("joined a scheduler", peer=link.peers[chosen].name)
        else:
            self._retry_later(engine, link)

    def _stepped(self, engine: Engine, link: Link, outcome: Outcome) -> None:
        """A plan is through; runs in the event loop."""
        NUM_SEQUENCES.set(engine.num_sequences)
        if isinstance(outcome, StepResult):
            STEP_SECONDS.observe(outcome.step_ns / 1e9)
        else:
            STEPS_REJECTED.inc()
            logger.warning("plan rejected", step_id=outcome.step_id, reason=outcome.reason)
        self._unsent.append(outcome)
        self._send_results(engine, link)

    def _send_results(self, engine: Engine, link: Link) -> None:
        while self._unsent and self._scheduler is not None:
            if not link.send(self._scheduler, self._unsent[0]):
                self._retry_later(engine, link)
                return
            self._unsent.popleft()

    def _retry_later(self, engine: Engine, link: Link) -> None:
        if self._retry is None:
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(RETRY_S, self._try_again, engine, link)

    def _try_again(self, engine: Engine, link: Link) -> None:
        self._retry = None
        self._attach(engine, link)
        self._send_results(engine, link)
