"""What happens to the scheduler core, and what it wants done.

Events are named in the past tense and instructions in the imperative. `worker` and `owner` are
instance ids of peers. Instructions are to be carried out in order.

Both are records like the messages that they carry, so that what the core was told and what it
answered can be kept (`services.scheduler.record`): arrays with a tag that is never reused, events
from 100, instructions from 120; fields are only ever appended, with a default.
"""

from typing import TypeAlias

import msgspec

from common.messages import (
    CancelReason,
    GenerateRequest,
    Heartbeat,
    RequestFailed,
    StepPlan,
    StepRejected,
    StepResult,
    TokenDeltas,
    WorkerJoin,
)
from services.scheduler.cost_model import StepShape


class _Entry(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """Base of events and instructions."""


class RequestArrived(_Entry, frozen=True, tag=100):
    owner: str
    message: GenerateRequest


class RequestCancelled(_Entry, frozen=True, tag=101):
    owner: str
    request_id: str
    reason: CancelReason


class OwnerLost(_Entry, frozen=True, tag=102):
    """The tokenizer is gone, or cannot be reached: nobody waits for its requests."""

    owner: str


class LiveRequestsListed(_Entry, frozen=True, tag=103):
    """Audit: these are all the requests that the owner still wants."""

    owner: str
    request_ids: tuple[str, ...]


class StepFinished(_Entry, frozen=True, tag=104):
    worker: str
    result: StepResult


class StepRefused(_Entry, frozen=True, tag=105):
    """The worker could not resolve a plan; nothing of it ran."""

    worker: str
    message: StepRejected


class WorkerJoined(_Entry, frozen=True, tag=106):
    """The worker is attached, empty. From one that is attached already: it has started afresh."""

    worker: str
    message: WorkerJoin


class WorkerLost(_Entry, frozen=True, tag=107):
    worker: str


class WorkerDraining(_Entry, frozen=True, tag=108):
    """The worker finishes what runs on it and takes nothing more."""

    worker: str


class Tick(_Entry, frozen=True, tag=109):
    """Time has passed; comes about once a second."""


Event: TypeAlias = (
    RequestArrived
    | RequestCancelled
    | OwnerLost
    | LiveRequestsListed
    | StepFinished
    | StepRefused
    | WorkerJoined
    | WorkerLost
    | WorkerDraining
    | Tick
)


class SendStep(_Entry, frozen=True, tag=120):
    worker: str
    plan: StepPlan
    shape: StepShape  # what the plan's chunks amount to
    queue_times_s: tuple[float, ...] = ()  # of requests that start for the first time with it


class EmitTokens(_Entry, frozen=True, tag=121):
    owner: str
    message: TokenDeltas


class FailRequest(_Entry, frozen=True, tag=122):
    owner: str
    message: RequestFailed


class ReportUnknown(_Entry, frozen=True, tag=123):
    """The owner lists requests that are not here; it may send them again."""

    owner: str
    request_ids: tuple[str, ...]


class RefuseWorker(_Entry, frozen=True, tag=124):
    """The worker cannot serve here; no plan will be sent to it."""

    worker: str
    reason: str


class StatusChanged(_Entry, frozen=True, tag=125):
    """What heartbeats should say; comes with ticks and when workers come, drain or go."""

    status: Heartbeat


Instruction: TypeAlias = (
    SendStep | EmitTokens | FailRequest | ReportUnknown | RefuseWorker | StatusChanged
)
