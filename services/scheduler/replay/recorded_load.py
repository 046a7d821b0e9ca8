"""What a record says of the world around the scheduler: clients, workers, and what passes took.

None of it depends on what the scheduler decided, except for when things came: clients that wait for
an answer before they send again would have sent at other times, had they been answered otherwise.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from common.errors import RecordError
from common.messages import GenerateRequest, TokenDelta, WorkerJoin
from common.token_ids import num_ids, pack_ids, unpack_ids
from common.workload.timeline import RequestShape, Timeline
from services.scheduler import checkpoint, record
from services.scheduler.core import CoreOptions, SchedulerCore
from services.scheduler.cost_model import NS_PER_MS, StepShape
from services.scheduler.events import (
    EmitTokens,
    Event,
    FailRequest,
    Instruction,
    LiveRequestsListed,
    OwnerLost,
    RefuseWorker,
    RequestArrived,
    RequestCancelled,
    SendStep,
    StepFinished,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from services.scheduler.request import Request

MS_PER_S = 1e3
CANCELLED = "cancelled"


@dataclass(slots=True)
class RecordedRequest:
    """One request, as its owner saw it."""

    message: GenerateRequest
    timeline: Timeline  #: seconds on the recorded clock; of a resumed request without its past
    output_ids: list[int]  #: all that are known
    #: it was there before the record began, or came with output: its first token is not in here
    is_resumed: bool
    stopped: bool = False  #: a stop string ended it: known only by its cancel
    cancelled_at: float | None = None  #: given up by its client
    is_over: bool = False

    @property
    def is_measured(self) -> bool:
        """Whether it began and came to its end in the record, and so can be compared."""
        return self.is_over and not self.is_resumed and self.cancelled_at is None


@dataclass(frozen=True, slots=True)
class WorkerChange:
    """A worker came, began to drain, or went; `join` is None for the latter two."""

    now: float
    worker: str
    join: WorkerJoin | None
    is_drain: bool = False


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass that ran."""

    worker: str
    shape: StepShape
    ms: float  #: on the device
    #: milliseconds between the result before it and its own that it did not run, if its worker had
    #: it already when that result came; else None
    wait_ms: float | None


@dataclass(slots=True)
class RecordedLoad:
    """All of it; times in seconds on the recorded clock."""

    options: CoreOptions  #: of the scheduler that was recorded
    began_at: float
    ended_at: float
    requests: list[RecordedRequest] = field(default_factory=list)  #: in order of arrival
    worker_changes: list[WorkerChange] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)


def read_load(entries: Iterable[record.Entry]) -> RecordedLoad:
    """Gather it from the entries of a record, without its header.

    Raises:
        RecordError: they do not begin with a state that this version can load.
    """
    remaining = iter(entries)
    first = next(remaining, None)
    if not isinstance(first, record.StateSaved):
        raise RecordError("the record has no state to begin with")
    reader = _Reader(checkpoint.load(first.state), first.now)
    for entry in remaining:
        if isinstance(entry, record.Decided):
            instructions = record.decode_instructions(bytes(entry.instructions))
            reader.take(entry.event, instructions, entry.now)
    return reader.load


class _Reader:
    """Follows a record from its first state on."""

    def __init__(self, core: SchedulerCore, now: float) -> None:
        self.load = RecordedLoad(core.options, now, now)
        self._live: dict[tuple[str, str], RecordedRequest] = {}
        #: by (worker, step id): what was in the step, and when it was sent
        self._sent: dict[tuple[str, int], tuple[StepShape, float]] = {}
        self._last_result_at: dict[str, float] = {}
        for replica in core.replicas:
            self._worker_changed(WorkerChange(now, replica.worker, replica.join))
            if replica.draining:
                self._worker_changed(WorkerChange(now, replica.worker, None, is_drain=True))
            for step in replica.in_flight:
                if step.shape is not None:
                    self._sent[replica.worker, step.step_id] = (step.shape, now)
        for request in sorted(core.requests(), key=lambda r: r.arrival):
            self._add(request.owner, _message_of(request), now, is_resumed=True)

    def take(self, event: Event, instructions: list[Instruction], now: float) -> None:
        """Take note of a decision."""
        self.load.ended_at = now
        self._note_event(event, instructions, now)
        for instruction in instructions:
            match instruction:
                case SendStep(worker, plan, shape):
                    self._sent[worker, plan.step_id] = (shape, now)
                case EmitTokens(owner, message):
                    for delta in message.deltas:
                        self._receive(owner, delta, now)
                case FailRequest(owner, failure):
                    self._end(owner, failure.request_id, failure=failure.code)
                case _:
                    pass

    def _note_event(self, event: Event, instructions: list[Instruction], now: float) -> None:
        match event:
            case RequestArrived(owner, message):
                self._cancel(owner, message.request_id, now)  # if it is sent again
                self._add(owner, message, now, is_resumed=bool(message.output_ids))
            case RequestCancelled(owner, request_id, "stop_string"):
                self._stop(owner, request_id)
            case RequestCancelled(owner, request_id):
                self._cancel(owner, request_id, now)
            case OwnerLost(owner):
                self._keep(owner, (), now)
            case LiveRequestsListed(owner, request_ids):
                self._keep(owner, request_ids, now)
            case StepFinished(worker, result):
                self._step_finished(worker, result.step_id, result.step_ns / NS_PER_MS, now)
            case WorkerJoined(worker, join):
                if not any(isinstance(i, RefuseWorker) for i in instructions):
                    self._worker_changed(WorkerChange(now, worker, join))
            case WorkerDraining(worker):
                self._worker_changed(WorkerChange(now, worker, None, is_drain=True))
            case WorkerLost(worker):
                self._worker_changed(WorkerChange(now, worker, None))
            case _:
                pass

    def _worker_changed(self, change: WorkerChange) -> None:
        self.load.worker_changes.append(change)

    def _step_finished(self, worker: str, step_id: int, ms: float, now: float) -> None:
        sent = self._sent.pop((worker, step_id), None)
        if sent is None:
            return
        shape, sent_at = sent
        last_result_at = self._last_result_at.get(worker)
        self._last_result_at[worker] = now
        if not shape.num_tokens or ms <= 0:
            return  # nothing ran
        wait_ms = None
        if last_result_at is not None and sent_at < last_result_at:
            wait_ms = (now - last_result_at) * MS_PER_S - ms
        self.load.passes.append(Pass(worker, shape, ms, wait_ms))

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    def _add(self, owner: str, message: GenerateRequest, now: float, is_resumed: bool) -> None:
        shape = RequestShape(
            num_ids(message.prompt_ids),
            message.sampling.max_tokens or 0,
            message.tenant,
            message.priority,
        )
        output_ids = list(unpack_ids(message.output_ids))
        request = RecordedRequest(message, Timeline(shape, now), output_ids, is_resumed)
        self._live[owner, message.request_id] = request
        self.load.requests.append(request)

    def _receive(self, owner: str, delta: TokenDelta, now: float) -> None:
        request = self._live.get((owner, delta.request_id))
        if request is None:
            return
        token_ids = unpack_ids(delta.token_ids)
        if token_ids:
            request.output_ids += token_ids
            request.timeline.token_at.append(now)
            request.timeline.num_output_tokens += len(token_ids)
        if delta.finish_reason is not None:
            self._end(owner, delta.request_id)

    def _end(self, owner: str, request_id: str, failure: str | None = None) -> None:
        request = self._live.pop((owner, request_id), None)
        if request is not None:
            request.is_over = True
            request.timeline.failure = failure

    def _stop(self, owner: str, request_id: str) -> None:
        request = self._live.get((owner, request_id))
        if request is not None:
            request.stopped = True
            self._end(owner, request_id)

    def _cancel(self, owner: str, request_id: str, now: float) -> None:
        request = self._live.get((owner, request_id))
        if request is not None:
            request.cancelled_at = now
            self._end(owner, request_id, failure=CANCELLED)

    def _keep(self, owner: str, request_ids: Iterable[str], now: float) -> None:
        """Of an owner's requests only these are wanted any more."""
        kept = set(request_ids)
        for of, request_id in list(self._live):
            if of == owner and request_id not in kept:
                self._cancel(owner, request_id, now)


def _message_of(request: Request) -> GenerateRequest:
    """What would have to be sent for a request to go on from where it is."""
    num_prompt = request.num_prompt_tokens
    return GenerateRequest(
        request_id=request.request_id,
        prompt_ids=pack_ids(request.token_ids[:num_prompt]),
        sampling=request.sampling,
        output_ids=pack_ids(request.token_ids[num_prompt:]),
        priority=request.priority,
        tenant=request.tenant,
    )
