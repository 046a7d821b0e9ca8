"""What happens to the scheduler core, and what it wants done.

Events are named in the past tense and instructions in the imperative. `worker` and `owner` are
instance ids of peers. Instructions are to be carried out in order.
"""

from dataclasses import dataclass
from typing import TypeAlias

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


@dataclass(frozen=True, slots=True)
class RequestArrived:
    owner: str
    message: GenerateRequest


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    owner: str
    request_id: str
    reason: CancelReason


@dataclass(frozen=True, slots=True)
class OwnerLost:
    """The tokenizer is gone, or cannot be reached: nobody waits for its requests."""

    owner: str


@dataclass(frozen=True, slots=True)
class LiveRequestsListed:
    """Audit: these are all the requests that the owner still wants."""

    owner: str
    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepFinished:
    worker: str
    result: StepResult


@dataclass(frozen=True, slots=True)
class StepRefused:
    """The worker could not resolve a plan; nothing of it ran."""

    worker: str
    message: StepRejected


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """The worker is attached, empty. From one that is attached already: it has started afresh."""

    worker: str
    message: WorkerJoin


@dataclass(frozen=True, slots=True)
class WorkerLost:
    worker: str


@dataclass(frozen=True, slots=True)
class WorkerDraining:
    """The worker finishes what runs on it and takes nothing more."""

    worker: str


@dataclass(frozen=True, slots=True)
class Tick:
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


@dataclass(frozen=True, slots=True)
class SendStep:
    worker: str
    plan: StepPlan
    shape: StepShape  # what the plan's chunks amount to
    queue_times_s: tuple[float, ...] = ()  # of requests that start for the first time with it


@dataclass(frozen=True, slots=True)
class EmitTokens:
    owner: str
    message: TokenDeltas


@dataclass(frozen=True, slots=True)
class FailRequest:
    owner: str
    message: RequestFailed


@dataclass(frozen=True, slots=True)
class ReportUnknown:
    """The owner lists requests that are not here; it may send them again."""

    owner: str
    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RefuseWorker:
    """The worker cannot serve here; no plan will be sent to it."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class StatusChanged:
    """What heartbeats should say; comes with ticks and when workers come, drain or go."""

    status: Heartbeat


Instruction: TypeAlias = (
    SendStep | EmitTokens | FailRequest | ReportUnknown | RefuseWorker | StatusChanged
)
