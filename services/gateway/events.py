"""What happens to the gateway's streams and what follows; `services.gateway.streams` decides."""

from typing import TypeAlias

import msgspec

from common.errors import RequestError
from common.link import LinkEvent
from common.messages import AnyMessage, CancelReason, TextDelta, TokenizeRequest

# ── events ───────────────────────────────────────────────────────────────────────────────────────


class Submit(msgspec.Struct, frozen=True):
    """A request was admitted; it fails when it is not finished after `timeout_s`."""

    request: TokenizeRequest
    model: str
    timeout_s: float | None = None


class Abandon(msgspec.Struct, frozen=True):
    """Nobody wants the result any more."""

    request_id: str
    reason: CancelReason


class SendRefused(msgspec.Struct, frozen=True):
    """The link did not take the message of a `Send`: it is full, or `error` says what else."""

    instance_id: str
    message: AnyMessage
    error: RequestError | None = None


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


Event: TypeAlias = Submit | Abandon | SendRefused | Tick | LinkEvent


# ── actions ──────────────────────────────────────────────────────────────────────────────────────


class Send(msgspec.Struct, frozen=True, gc=False):
    instance_id: str
    message: AnyMessage


class Deliver(msgspec.Struct, frozen=True, gc=False):
    """New text for the client; a finish reason in it ends the request."""

    delta: TextDelta


class Fail(msgspec.Struct, frozen=True):
    request_id: str
    error: RequestError


Action: TypeAlias = Send | Deliver | Fail
