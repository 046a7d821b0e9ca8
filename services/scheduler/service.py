"""The scheduler's shell: messages become events, instructions become messages.

    tokenizers ──GenerateRequest, CancelRequest, LiveRequests──▶ ┐
    workers    ──WorkerJoin, StepResult, StepRejected──────────▶ ├ core ─▶ StepPlan, TokenDeltas …
    the link   ──peers up, changed, down───────────────────────▶ ┘

Back-pressure: the link queues for each peer. A tokenizer whose queue is full is not reading: its
requests are cancelled, and its audit finds that out and sends them again. A plan that a worker's
queue does not take is kept here, at most two of them, and tried again with every event.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping

import msgspec
import structlog

from common.clock import Clock, MonotonicClock
from common.config import SchedulerConfig
from common.link import Link, LinkEvent, Peer, PeerChanged, PeerDown, Received
from common.messages import (
    AnyMessage,
    CancelRequest,
    GenerateRequest,
    Heartbeat,
    LiveRequests,
    Refused,
    StepPlan,
    StepRejected,
    StepResult,
    UnknownRequests,
    WorkerJoin,
)
from common.transport import Inbox
from services.scheduler.core import CoreOptions, SchedulerCore
from services.scheduler.events import (
    EmitTokens,
    Event,
    FailRequest,
    Instruction,
    LiveRequestsListed,
    OwnerLost,
    RefuseWorker,
    ReportUnknown,
    RequestArrived,
    RequestCancelled,
    SendStep,
    StatusChanged,
    StepFinished,
    StepRefused,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from services.scheduler.metrics import SchedulerMetrics
from services.scheduler.policies import make_policy
from services.scheduler.recording import Recording

TICK_S = 1.0

logger = structlog.get_logger(__name__)


class SchedulerService:
    """A `common.lifecycle.Service` around one `SchedulerCore`."""

    def __init__(
        self,
        config: SchedulerConfig,
        identity: Peer,
        *,
        make_link: Callable[[], Link] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._config = config
        self._make_link = make_link or (lambda: Inbox(config.bind, identity, config))
        self._clock = clock or MonotonicClock()
        self._core = SchedulerCore(core_options(config))
        self._recording = Recording.of(config, identity.name, self._core, self._clock.now())
        self._metrics = SchedulerMetrics(self._clock.now())
        self._link: Link | None = None
        self._status = Heartbeat(ready=False, draining=False)
        self._draining = False
        #: plans that a worker's queue did not take, by worker; at most two each
        self._unsent: dict[str, deque[StepPlan]] = {}

    @property
    def addresses(self) -> Mapping[str, str]:
        return {"bind": self._config.bind}

    @property
    def is_ready(self) -> bool:
        return self._status.ready and not self._draining

    @property
    def is_idle(self) -> bool:
        return self._core.num_requests == 0

    async def start(self) -> None:
        self._link = self._make_link()
        if self._recording is not None:
            self._recording.listen()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tick())
            tasks.create_task(self._serve())

    def drain(self) -> None:
        self._draining = True
        self._announce()

    async def stop(self, reason: str) -> None:
        if self._link is not None:
            await self._link.close(reason)
        if self._recording is not None:
            await self._recording.close()

    async def _serve(self) -> None:
        link = self._open_link
        while True:
            event = translate(await link.receive())
            if event is not None:
                self.feed(event)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.feed(Tick())
            self._metrics.tick(self._core.stats, self._core.time_account, self._clock.now())

    def feed(self, event: Event) -> None:
        """Let the core handle an event and carry out what it wants."""
        for worker in list(self._unsent):
            self._send_plans(worker)
        self._note(event)
        now = self._clock.now()
        instructions = self._handle(event, now)
        lost = [owner for i in instructions if (owner := self._perform(i)) is not None]
        if self._recording is not None:  # when everyone has what they wait for
            self._recording.note(event, now, instructions)
        for owner in dict.fromkeys(lost):
            logger.warning("tokenizer does not read, its requests are cancelled", peer=owner)
            self.feed(OwnerLost(owner))

    def _handle(self, event: Event, now: float) -> list[Instruction]:
        try:
            return self._core.handle(event, now)
        except Exception as error:
            if self._recording is not None:
                self._recording.crashed(event, now, error)
            raise

    def _note(self, event: Event) -> None:
        """What an event means beyond the core."""
        match event:
            case StepFinished(_, result):
                self._metrics.step_finished(result.step_ns)
            case StepRefused(worker, message):
                logger.warning("step refused", worker=worker, reason=message.reason)
            case WorkerJoined(worker, join):
                self._unsent.pop(worker, None)
                logger.info(
                    "worker joined",
                    worker=worker,
                    model=join.model,
                    device=join.device,
                    num_blocks=join.num_blocks,
                    block_size=join.block_size,
                )
            case WorkerLost(worker):
                self._unsent.pop(worker, None)

    def _perform(self, instruction: Instruction) -> str | None:
        """Carry out one instruction; returns an owner that could not be told."""
        match instruction:
            case SendStep(worker, plan, shape, queue_times_s):
                self._metrics.step_sent(shape.num_tokens, queue_times_s)
                self._unsent.setdefault(worker, deque()).append(plan)
                self._send_plans(worker)
            case EmitTokens(owner, message) | FailRequest(owner, message):
                return self._tell(owner, message)
            case ReportUnknown(owner, request_ids):
                return self._tell(owner, UnknownRequests(request_ids))
            case RefuseWorker(worker, reason):
                logger.error("worker refused", worker=worker, reason=reason)
                self._open_link.send(worker, Refused(reason))
            case StatusChanged(status):
                self._status = status
                self._announce()
        return None

    def _tell(self, owner: str, message: AnyMessage) -> str | None:
        return None if self._open_link.send(owner, message) else owner

    def _send_plans(self, worker: str) -> None:
        plans = self._unsent[worker]
        while plans and self._open_link.send(worker, plans[0]):
            plans.popleft()
        if not plans:
            del self._unsent[worker]

    def _announce(self) -> None:
        self._open_link.set_status(msgspec.structs.replace(self._status, draining=self._draining))

    @property
    def _open_link(self) -> Link:
        if self._link is None:
            raise RuntimeError("the service has not started")
        return self._link


def core_options(config: SchedulerConfig) -> CoreOptions:
    """The core's part of the config."""
    return CoreOptions(
        policy=make_policy(config.scheduling_policy, config.partition),
        token_budget=config.max_num_batched_tokens,
        max_num_seqs=config.max_num_seqs,
        max_queued_tokens=config.max_queued_tokens,
        caching=config.enable_prefix_caching,
        target_tbt_ms=config.target_tbt_ms,
        target_ttft_ms=config.target_ttft_ms,
    )


def translate(event: LinkEvent) -> Event | None:
    """What a link event means to the core; None if nothing."""
    match event:
        case Received(peer, message):
            return _translate_message(peer.instance_id, message)
        case PeerDown(Peer(kind="worker", instance_id=worker)):
            return WorkerLost(worker)
        case PeerDown(Peer(instance_id=owner)):
            return OwnerLost(owner)
        case PeerChanged(Peer(kind="worker", instance_id=worker), Heartbeat(draining=True)):
            return WorkerDraining(worker)
    return None


def _translate_message(sender: str, message: AnyMessage) -> Event | None:
    match message:
        case StepResult():
            return StepFinished(sender, message)
        case GenerateRequest():
            return RequestArrived(sender, message)
        case CancelRequest(request_id, reason):
            return RequestCancelled(sender, request_id, reason)
        case LiveRequests(request_ids):
            return LiveRequestsListed(sender, request_ids)
        case StepRejected():
            return StepRefused(sender, message)
        case WorkerJoin():
            return WorkerJoined(sender, message)
    return None  # the link lets nothing else through
