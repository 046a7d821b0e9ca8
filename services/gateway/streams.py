"""Who works on which request: the gateway's half of failover, as a pure state machine.

`GatewayState.handle(event, now)` takes what happened and returns what to do, in order. Each live
request is worked on by at most one tokenizer, its owner, or waits for one. The state keeps the
output ids that came with the text: when the owner is lost, another tokenizer gets the request with
these ids and continues behind them, so the client sees every token exactly once.

Invariants: a request ends exactly once, by a `Deliver` whose delta has a finish reason, by a
`Fail`, or by an `Abandon` event; after that nothing is said about it. A delta reaches the client
only if it comes from the request's owner and joins on exactly at the ids that are already there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from common.errors import FailureCode, RequestError
from common.link import Peer, PeerChanged, PeerDown, PeerUp, Received
from common.messages import (
    AnyMessage,
    CancelReason,
    CancelRequest,
    Heartbeat,
    Limits,
    LiveRequests,
    RequestFailed,
    TextDelta,
    TextDeltas,
    TokenizeRequest,
    UnknownRequests,
)
from common.token_ids import num_ids
from services.gateway.events import (
    Abandon,
    Action,
    Deliver,
    Event,
    Fail,
    Send,
    SendRefused,
    Submit,
    Tick,
)

# How long a request waits for a tokenizer to come back, and how long its model counts as served.
MAX_WAIT_S = 60.0
# A request that outlived this many owners without a token in between is likely what kills them.
MAX_RESENDS = 3


@dataclass(slots=True)
class Stream:
    """One live request."""

    request: TokenizeRequest
    model: str
    submitted: float
    timeout_s: float | None
    # Since when the request has made no progress for want of a tokenizer; None once it has.
    waiting_since: float | None
    owner: str | None = None  # instance id of the tokenizer that works on it; None = waits
    output_ids: bytearray = field(default_factory=bytearray)  # of all text delivered, packed
    num_output_tokens: int = 0  # in output_ids
    has_text: bool = False  # a delta was delivered, so an echoed prompt was too
    has_gap: bool = False  # the owner is ahead of us: a message was lost, or is from a past life
    num_resends: int = 0  # since its last output


@dataclass(slots=True)
class Tokenizer:
    """One peer that is up, and the requests it owns."""

    peer: Peer
    heartbeat: Heartbeat | None = None  # None before the first
    request_ids: set[str] = field(default_factory=set)

    def can_take(self, model: str) -> bool:
        status = self.heartbeat
        return (
            status is not None
            and status.ready
            and not status.draining
            and status.limits is not None
            and status.limits.model == model
        )

    def load(self) -> tuple[int, int, str]:
        """Smallest = best choice: our requests there, everybody's, then any fixed order."""
        total = self.heartbeat.num_requests if self.heartbeat is not None else 0
        return len(self.request_ids), total, self.peer.instance_id


@dataclass(slots=True)
class ServedModel:
    limits: Limits
    last_ready: float  # when a tokenizer was last seen ready for it


class GatewayState:
    """All live requests of one gateway and the tokenizers that it sees.

    Args:
        audit_period_s: time between lists of live requests to each tokenizer.
    """

    def __init__(self, audit_period_s: float) -> None:
        self._audit_period_s = audit_period_s
        self._next_audit = 0.0
        self._streams: dict[str, Stream] = {}
        self._waiting: dict[str, Stream] = {}  # those without an owner, in order of arrival
        self._tokenizers: dict[str, Tokenizer] = {}
        self._models: dict[str, ServedModel] = {}

    @property
    def num_requests(self) -> int:
        return len(self._streams)

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """What is served now, or was until at most `MAX_WAIT_S` ago."""
        return self._models

    @property
    def num_tokenizers(self) -> int:
        return len(self._tokenizers)

    @property
    def is_ready(self) -> bool:
        """Whether some tokenizer can take new work now."""
        return any(t.can_take(m) for t in self._tokenizers.values() for m in self._models)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in one event; `now` is in seconds and never decreases."""
        match event:
            case Received(peer, message):
                return self._received(peer.instance_id, message, now)
            case Submit():
                return self._submit(event, now)
            case Abandon(request_id, reason):
                return self._abandon(request_id, reason)
            case Tick():
                return self._tick(now)
            case PeerUp(peer):
                self._tokenizers[peer.instance_id] = Tokenizer(peer)
                return []
            case PeerChanged(peer, heartbeat):
                return self._peer_changed(peer.instance_id, heartbeat, now)
            case PeerDown(peer):
                return self._peer_down(peer.instance_id, now)
            case SendRefused():
                return self._send_refused(event, now)

    # ── requests come and go ─────────────────────────────────────────────────────────────────────

    def _submit(self, event: Submit, now: float) -> list[Action]:
        stream = Stream(event.request, event.model, now, event.timeout_s, waiting_since=now)
        request_id = event.request.request_id
        self._streams[request_id] = stream
        self._waiting[request_id] = stream
        return self._place([stream])

    def _abandon(self, request_id: str, reason: CancelReason) -> list[Action]:
        stream = self._forget(request_id)
        if stream is None or stream.owner is None:
            return []
        return [Send(stream.owner, CancelRequest(request_id, reason))]

    def _fail(
        self, request_id: str, error: RequestError, cancel: CancelReason | None = None
    ) -> list[Action]:
        actions = self._abandon(request_id, cancel) if cancel else []
        self._forget(request_id)
        return [*actions, Fail(request_id, error)]

    def _forget(self, request_id: str) -> Stream | None:
        stream = self._streams.pop(request_id, None)
        if stream is not None:
            self._waiting.pop(request_id, None)
            self._release(stream)
        return stream

    def _release(self, stream: Stream) -> None:
        if stream.owner is not None and stream.owner in self._tokenizers:
            self._tokenizers[stream.owner].request_ids.discard(stream.request.request_id)

    # ── placement ────────────────────────────────────────────────────────────────────────────────

    def _place(self, streams: Iterable[Stream]) -> list[Action]:
        """Give waiting streams to the least loaded tokenizers that can take them."""
        actions: list[Action] = []
        for stream in streams:
            able = [t for t in self._tokenizers.values() if t.can_take(stream.model)]
            if not able:
                continue
            tokenizer = min(able, key=Tokenizer.load)
            request_id = stream.request.request_id
            stream.owner = tokenizer.peer.instance_id
            tokenizer.request_ids.add(request_id)
            del self._waiting[request_id]
            actions.append(Send(stream.owner, _as_sent(stream)))
        return actions

    def _replace(self, request_id: str, now: float, why: str) -> list[Action]:
        """Take the request from its owner and give it to another, or the same, afresh."""
        stream = self._streams[request_id]
        self._postpone(stream, now)
        stream.num_resends += 1
        if stream.num_resends > MAX_RESENDS:
            message = f"the request was given up after {MAX_RESENDS} attempts to resume it: {why}"
            return self._fail(request_id, RequestError(FailureCode.INTERNAL, message))
        return self._place([stream])

    def _postpone(self, stream: Stream, now: float) -> None:
        """Take the request from its owner; it waits, and has since it last made progress."""
        self._release(stream)
        stream.owner = None
        stream.has_gap = False
        if stream.waiting_since is None:
            stream.waiting_since = now
        self._waiting[stream.request.request_id] = stream

    def _send_refused(self, event: SendRefused, now: float) -> list[Action]:
        """A first send fails the request at once: back-pressure belongs to the client.

        A stream that was interrupted waits instead, for the next tick. A cancel or a list that was
        not taken is made good by the next audit.
        """
        message = event.message
        if not isinstance(message, TokenizeRequest):
            return []
        stream = self._streams.get(message.request_id)
        if stream is None or stream.owner != event.instance_id:
            return []
        if event.error is not None:
            return self._fail(message.request_id, event.error)
        if stream.num_resends == 0 and not stream.has_text:
            error = RequestError(
                FailureCode.OVERLOADED, "the server is full: the queue to its tokenizer is full"
            )
            return self._fail(message.request_id, error)
        self._postpone(stream, now)
        return []

    # ── tokenizers come, change and go ───────────────────────────────────────────────────────────

    def _peer_changed(self, instance_id: str, heartbeat: Heartbeat, now: float) -> list[Action]:
        tokenizer = self._tokenizers.get(instance_id)
        if tokenizer is None:
            return []
        tokenizer.heartbeat = heartbeat
        self._see_models(now)
        return self._place(list(self._waiting.values()))

    def _peer_down(self, instance_id: str, now: float) -> list[Action]:
        tokenizer = self._tokenizers.pop(instance_id, None)
        if tokenizer is None:
            return []
        # In order of arrival, so that the oldest requests are resumed first.
        orphans = [id_ for id_ in self._streams if id_ in tokenizer.request_ids]
        actions: list[Action] = []
        for request_id in orphans:
            actions += self._replace(request_id, now, "its tokenizer was lost")
        return actions

    def _see_models(self, now: float) -> None:
        ready: dict[str, Limits] = {}
        for tokenizer in self._tokenizers.values():
            limits = tokenizer.heartbeat.limits if tokenizer.heartbeat is not None else None
            if limits is None or not tokenizer.can_take(limits.model):
                continue
            known = ready.get(limits.model, limits)
            ready[limits.model] = min(known, limits, key=lambda each: each.max_model_len)
        for model, limits in ready.items():
            self._models[model] = ServedModel(limits, now)
        for model in [m for m, s in self._models.items() if now - s.last_ready > MAX_WAIT_S]:
            del self._models[model]

    # ── what tokenizers say ──────────────────────────────────────────────────────────────────────

    def _received(self, instance_id: str, message: AnyMessage, now: float) -> list[Action]:
        match message:
            case TextDeltas(deltas):
                actions: list[Action] = []
                for delta in deltas:
                    actions += self._delta(instance_id, delta)
                return actions
            case RequestFailed() if self._owns(instance_id, message.request_id):
                return self._failed_there(message, now)
            case UnknownRequests(request_ids):
                actions = []
                for request_id in request_ids:
                    if self._owns(instance_id, request_id):
                        actions += self._replace(request_id, now, "its tokenizer did not know it")
                return actions
            case _:
                return []

    def _failed_there(self, failure: RequestFailed, now: float) -> list[Action]:
        """A stream in mid-answer is not refused for want of room: it waits for the next tick."""
        stream = self._streams[failure.request_id]
        code = _failure_code(failure.code)
        if stream.has_text and code in (FailureCode.OVERLOADED, FailureCode.UNAVAILABLE):
            self._postpone(stream, now)
            return []
        return self._fail(failure.request_id, RequestError(code, failure.message, failure.param))

    def _owns(self, instance_id: str, request_id: str) -> bool:
        stream = self._streams.get(request_id)
        return stream is not None and stream.owner == instance_id

    def _delta(self, instance_id: str, delta: TextDelta) -> list[Action]:
        stream = self._streams.get(delta.request_id)
        if stream is None or stream.owner != instance_id:
            return []
        if delta.num_output_tokens != stream.num_output_tokens:
            stream.has_gap |= delta.num_output_tokens > stream.num_output_tokens
            return []
        stream.output_ids += delta.token_ids
        stream.num_output_tokens += num_ids(delta.token_ids)
        stream.has_text = True
        stream.has_gap = False
        stream.num_resends = 0
        stream.waiting_since = None
        if delta.finish_reason is None:
            return [Deliver(delta)]
        if delta.finish_reason in ("stop", "length"):
            self._forget(delta.request_id)
            return [Deliver(delta)]
        code = FailureCode.CANCELLED if delta.finish_reason == "cancelled" else FailureCode.INTERNAL
        message = f"the request ended early: {delta.finish_reason}"
        return self._fail(delta.request_id, RequestError(code, message))

    # ── time ─────────────────────────────────────────────────────────────────────────────────────

    def _tick(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for request_id, stream in list(self._streams.items()):
            if stream.timeout_s is not None and now - stream.submitted >= stream.timeout_s:
                error = RequestError(
                    FailureCode.TIMEOUT, f"the request took longer than {stream.timeout_s:g} s"
                )
                actions += self._fail(request_id, error, cancel="deadline")
            elif stream.owner is None and _waited(stream, now) > MAX_WAIT_S:
                error = RequestError(
                    FailureCode.UNAVAILABLE, f"no tokenizer came back within {MAX_WAIT_S:.0f} s"
                )
                actions += self._fail(request_id, error)
        self._see_models(now)
        actions += self._place(list(self._waiting.values()))
        if now >= self._next_audit:
            self._next_audit = now + self._audit_period_s
            actions += self._audit(now)
        return actions

    def _audit(self, now: float) -> list[Action]:
        """Tell each tokenizer what we still want of it, and heal streams that lost a message."""
        actions: list[Action] = []
        for request_id, stream in list(self._streams.items()):
            if stream.has_gap and stream.owner is not None:
                actions.append(Send(stream.owner, CancelRequest(request_id, "superseded")))
                actions += self._replace(request_id, now, "a part of its output was lost")
        for instance_id, tokenizer in self._tokenizers.items():
            actions.append(Send(instance_id, LiveRequests(tuple(sorted(tokenizer.request_ids)))))
        return actions


def _waited(stream: Stream, now: float) -> float:
    return 0.0 if stream.waiting_since is None else now - stream.waiting_since


def _as_sent(stream: Stream) -> TokenizeRequest:
    """The request as the next tokenizer gets it: behind everything the client has received."""
    if not stream.has_text:
        return stream.request
    return msgspec.structs.replace(
        stream.request,
        resume_output_ids=bytes(stream.output_ids),
        text=msgspec.structs.replace(stream.request.text, echo=False),
    )


def _failure_code(code: str) -> FailureCode:
    return FailureCode(code) if code in set(FailureCode) else FailureCode.INTERNAL
