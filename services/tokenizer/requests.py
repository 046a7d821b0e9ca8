"""The record of each live request, and every decision about it. Pure.

`TokenizerState.handle(event, now)` takes what happened and answers what to do. A request is

    encoding ──▶ waiting ──▶ running ──▶ gone
                    ▲───────────┘  its scheduler is lost, forgot it, or lost part of the answer

and gone from any state when it is cancelled, fails, or its gateway is lost. While it lives, its
record holds all that another scheduler needs to continue it: prompt ids, emitted ids, parameters.

Towards schedulers a request bears a name of its own for every time it is sent (`sent_as`), so that
gateways may choose equal ids, and late answers to an abandoned sending belong to nobody.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from common.errors import FailureCode, RequestError
from common.link import Peer, PeerChanged, PeerDown, PeerUp, Received
from common.messages import (
    AnyMessage,
    CancelReason,
    CancelRequest,
    GenerateRequest,
    Heartbeat,
    LiveRequests,
    RequestFailed,
    TextDelta,
    TextDeltas,
    TokenDelta,
    TokenDeltas,
    TokenizeRequest,
    UnknownRequests,
)
from common.token_ids import num_ids
from services.tokenizer.answer import Answer
from services.tokenizer.events import (
    Action,
    Drain,
    Encode,
    Encoded,
    EncodeFailed,
    Event,
    Send,
    SendRefused,
    Tick,
    Warn,
)
from services.tokenizer.model_info import ModelInfo
from services.tokenizer.sampling import resolve_sampling
from services.tokenizer.schedulers import Schedulers
from services.tokenizer.vocabulary import Vocabulary

# How long a request waits for a scheduler that takes it.
WAIT_LIMIT_S = 60.0
# Requests that may be encoded or wait at once; more are refused, unless they continue a stream.
MAX_NUM_WAITING = 1024
# A request that loses its scheduler more often, without a token in between, may be the cause.
MAX_NUM_RESENDS = 3
# Messages kept for a gateway that does not read; beyond it, all its requests are given up.
MAX_NUM_UNSENT = 1024
# Kept deltas are joined to messages of so many.
MAX_NUM_JOINED = 256
# Text in one message, in characters; only a delta that has more by itself, as an echo may, exceeds
# it. Far below what a link can carry.
MAX_NUM_CHARS = 1_000_000


@dataclass(slots=True)
class LiveRequest:
    """All that is known of one request. It is encoding until it has prompt ids, running while it
    has a scheduler, and waiting in between."""

    ticket: int  # order of arrival; unique in this process
    gateway: str  # instance id of its owner
    message: TokenizeRequest
    prompt_ids: bytes = b""  # packed
    answer: Answer | None = None  # from the first time that it is sent
    waiting_since: float = 0.0
    scheduler: str | None = None  # instance id of who runs it
    sent_as: str = ""  # its name there
    num_resends: int = 0  # since its last output

    @property
    def key(self) -> tuple[str, str]:
        return self.gateway, self.message.request_id


@dataclass(slots=True)
class Counts:
    """Totals since the start, for metrics."""

    requests: int = 0
    resends: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # by failure code


class TokenizerState:
    """Mutate only through `handle`.

    Args:
        model: what the model directory says.
        vocabulary: pieces of the model's token ids.
        audit_period_s: time between lists of live requests to each scheduler.
    """

    def __init__(self, model: ModelInfo, vocabulary: Vocabulary, audit_period_s: float) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._audit_period_s = audit_period_s
        self._next_audit = 0.0
        self._num_tickets = 0
        self._num_sendings = 0
        self._draining = False
        self._schedulers = Schedulers(model)
        self._misfits: set[str] = set()  # schedulers of another model, each warned about once
        self._requests: dict[tuple[str, str], LiveRequest] = {}  # by gateway and request id
        # Every request is in exactly one of these three.
        self._encoding: dict[int, LiveRequest] = {}  # by ticket
        self._waiting: dict[int, LiveRequest] = {}  # by ticket, in the order of sending
        self._running: dict[str, LiveRequest] = {}  # by sent_as
        self._num_running: Counter[str] = Counter()  # by scheduler
        self._unsent: dict[str, list[AnyMessage]] = {}  # by gateway, oldest first, never empty
        self._actions: list[Action] = []
        self.counts = Counts()

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    @property
    def num_encoding(self) -> int:
        return len(self._encoding)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_unsent(self) -> bool:
        """Whether a full link holds something up that the next Tick may move."""
        return bool(self._unsent) or self._schedulers.has_full

    @property
    def status(self) -> Heartbeat:
        """What our heartbeats say."""
        limits = self._schedulers.limits()
        return Heartbeat(limits is not None, self._draining, self.num_requests, limits)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take what happened and decide what follows.

        Args:
            event: what happened; a message that does not suit its sender's kind is ignored.
            now: seconds on a clock that never goes back.

        Returns:
            Actions, to be performed in order before the next event.
        """
        match event:
            case Received(peer, message):
                self._receive(peer, message, now)
            case PeerUp(Peer(kind="scheduler") as peer):
                self._schedulers.up(peer.instance_id)
            case PeerChanged(Peer(kind="scheduler") as peer, heartbeat):
                self._scheduler_changed(peer, heartbeat)
            case PeerDown(Peer(kind="scheduler") as peer):
                self._scheduler_down(peer.instance_id, now)
            case PeerDown(Peer(kind="gateway") as peer):
                self._gateway_down(peer.instance_id)
            case Encoded():
                self._encoded(event, now)
            case EncodeFailed(ticket, error):
                if (request := self._encoding.get(ticket)) is not None:
                    self._fail(request, error)
            case SendRefused(send):
                self._refused(send)
            case Tick():
                self._tick(now)
            case Drain():
                self._draining = True
            case _:
                pass  # a gateway came or changed: it speaks first
        self._send_waiting()
        actions, self._actions = self._actions, []
        return actions

    def _receive(self, peer: Peer, message: AnyMessage, now: float) -> None:
        sender = peer.instance_id
        match peer.kind, message:
            case "gateway", TokenizeRequest():
                self._arrive(sender, message)
            case "gateway", CancelRequest(request_id, reason):
                if (request := self._requests.get((sender, request_id))) is not None:
                    self._cancel(request, reason)
            case "gateway", LiveRequests(request_ids):
                self._audited(sender, set(request_ids))
            case "scheduler", TokenDeltas(deltas):
                self._take(sender, deltas, now)
            case "scheduler", UnknownRequests(names):
                self._resend(self._running_at(sender, set(names)), now)
            case "scheduler", RequestFailed():
                self._failed_there(sender, message, now)
            case _:
                pass

    # ── requests come ────────────────────────────────────────────────────────────────────────────

    def _arrive(self, gateway: str, message: TokenizeRequest) -> None:
        """A request that we have already is replaced: its owner knows better what it wants."""
        if (stale := self._requests.get((gateway, message.request_id))) is not None:
            self._cancel(stale, "superseded")
        self.counts.requests += 1
        self._num_tickets += 1
        request = LiveRequest(self._num_tickets, gateway, message)
        self._requests[request.key] = request
        self._encoding[request.ticket] = request
        is_new = not message.resume_output_ids
        if is_new and self.num_encoding + self.num_waiting > MAX_NUM_WAITING:
            text = f"{MAX_NUM_WAITING} requests are waiting at this tokenizer already."
            self._fail(request, RequestError(FailureCode.OVERLOADED, text))
            return
        limits = self._schedulers.limits()
        max_model_len = self._model.max_model_len if limits is None else limits.max_model_len
        self._actions.append(Encode(request.ticket, message.prompt, max_model_len))

    def _encoded(self, event: Encoded, now: float) -> None:
        if (request := self._encoding.get(event.ticket)) is None:
            return  # cancelled meanwhile
        request.prompt_ids = event.prompt_ids
        self._wait([request], now)

    def _wait(self, requests: Iterable[LiveRequest], since: float) -> None:
        """Let them wait in the order of their arrival: who has run before goes first again."""
        for request in requests:
            self._detach(request)
            request.waiting_since = since
            self._waiting[request.ticket] = request
        self._waiting = dict(sorted(self._waiting.items()))

    def _send_waiting(self) -> None:
        """Send what waits, in order, for as long as there is a scheduler that takes it."""
        for request in list(self._waiting.values()):
            scheduler = self._schedulers.choose(self._num_running)
            if scheduler is None:
                return
            if request.answer is None:
                request.answer = self._begin(request)
            if request.answer is not None:
                self._run(request, request.answer, scheduler)

    def _begin(self, request: LiveRequest) -> Answer | None:
        """Resolve the parameters and replay what the client has; None if that was the end."""
        limits = self._schedulers.limits()
        if limits is None:
            return None
        message = request.message
        try:
            sampling = resolve_sampling(message, num_ids(request.prompt_ids), limits, self._model)
            answer = Answer(
                self._vocabulary,
                message,
                sampling,
                self._model.eos_ids,
                request.prompt_ids,
            )
            last = answer.replay(message.resume_output_ids)
        except RequestError as error:
            self._fail(request, error)
        except ValueError as error:
            self._fail(request, RequestError(FailureCode.INVALID_REQUEST, f"{error}."))
        else:
            if last is None:
                return answer
            self._forget(request)
            self._to_gateway(request.gateway, TextDeltas((last,)))
        return None

    def _run(self, request: LiveRequest, answer: Answer, scheduler: str) -> None:
        self._detach(request)
        self._num_sendings += 1
        request.scheduler = scheduler
        request.sent_as = f"{request.message.request_id}~{self._num_sendings}"
        self._running[request.sent_as] = request
        self._num_running[scheduler] += 1
        self._to_scheduler(
            scheduler,
            GenerateRequest(
                request_id=request.sent_as,
                prompt_ids=request.prompt_ids,
                sampling=answer.sampling,
                output_ids=answer.output_ids,
                priority=request.message.priority,
                tenant=request.message.tenant,
                target_tbt_ms=request.message.target_tbt_ms,
                # Each token is looked at: the one that ends a stop string ends the work.
                stream_interval=1 if request.message.text.stop else request.message.stream_interval,
            ),
        )

    # ── answers come ─────────────────────────────────────────────────────────────────────────────

    def _take(self, scheduler: str, deltas: Iterable[TokenDelta], now: float) -> None:
        """Pass text on: one message per gateway for one of a scheduler, unless it gets too long."""
        by_gateway: defaultdict[str, list[TextDelta]] = defaultdict(list)
        for delta in deltas:
            request = self._running.get(delta.request_id)
            if request is None or request.scheduler != scheduler or request.answer is None:
                continue  # of a sending that was given up
            if delta.num_output_tokens < request.answer.num_output_tokens:
                continue  # a repeat
            if delta.num_output_tokens > request.answer.num_output_tokens:
                self._send_anew(request, now)
                continue
            try:
                text_delta = request.answer.advance(delta)
            except ValueError:
                self._send_anew(request, now)
                continue
            request.num_resends = 0
            by_gateway[request.gateway].append(text_delta)
            if text_delta.finish_reason is not None:
                if delta.finish_reason is None:
                    self._to_scheduler(scheduler, CancelRequest(request.sent_as, "stop_string"))
                self._forget(request)
        for gateway, text_deltas in by_gateway.items():
            for message in _messages(text_deltas):
                self._to_gateway(gateway, message)

    def _send_anew(self, request: LiveRequest, now: float) -> None:
        """Part of the answer is missing or not readable."""
        if request.scheduler is not None:
            self._to_scheduler(request.scheduler, CancelRequest(request.sent_as, "superseded"))
        self._resend([request], now)

    def _failed_there(self, scheduler: str, failure: RequestFailed, now: float) -> None:
        """A refusal that is about the scheduler and not about the request sends it elsewhere."""
        request = self._running.get(failure.request_id)
        if request is None or request.scheduler != scheduler:
            return
        if failure.code == FailureCode.UNAVAILABLE and request.num_resends < MAX_NUM_RESENDS:
            self._resend([request], now)
            return
        self._forget(request)
        self._report_failure(request, failure.code, failure.message, failure.param)

    # ── requests go ──────────────────────────────────────────────────────────────────────────────

    def _cancel(self, request: LiveRequest, reason: CancelReason) -> None:
        """If the link refuses the message, the next audit frees what the scheduler holds."""
        if request.scheduler is not None:
            self._to_scheduler(request.scheduler, CancelRequest(request.sent_as, reason))
        self._forget(request)

    def _fail(self, request: LiveRequest, error: RequestError) -> None:
        self._forget(request)
        self._report_failure(request, error.code, error.message, error.param)

    def _report_failure(
        self, request: LiveRequest, code: str, message: str, param: str | None
    ) -> None:
        self.counts.failures[str(code)] += 1
        failure = RequestFailed(request.message.request_id, str(code), message, param)
        self._to_gateway(request.gateway, failure)

    def _forget(self, request: LiveRequest) -> None:
        self._detach(request)
        del self._requests[request.key]

    def _detach(self, request: LiveRequest) -> None:
        """Take it out of whichever collection holds it."""
        self._encoding.pop(request.ticket, None)
        self._waiting.pop(request.ticket, None)
        if request.scheduler is not None:
            del self._running[request.sent_as]
            self._num_running[request.scheduler] -= 1
            request.scheduler = None

    # ── peers come and go ────────────────────────────────────────────────────────────────────────

    def _scheduler_changed(self, peer: Peer, heartbeat: Heartbeat) -> None:
        self._schedulers.changed(peer.instance_id, heartbeat)
        limits = heartbeat.limits
        if limits is None or self._schedulers.is_fitting(limits):
            return
        if peer.instance_id not in self._misfits:
            self._misfits.add(peer.instance_id)
            fields = {
                "scheduler": peer.name,
                "vocab_size": limits.vocab_size,
                "max_token_id": self._model.max_token_id,
            }
            self._actions.append(Warn("scheduler serves another model than this tokenizer", fields))

    def _scheduler_down(self, scheduler: str, now: float) -> None:
        self._schedulers.down(scheduler)
        self._misfits.discard(scheduler)
        self._resend(self._running_at(scheduler), now)
        del self._num_running[scheduler]

    def _gateway_down(self, gateway: str) -> None:
        self._unsent.pop(gateway, None)
        for request in self._of_gateway(gateway):
            self._cancel(request, "client_disconnected")

    def _running_at(
        self, scheduler: str, names: Collection[str] | None = None
    ) -> list[LiveRequest]:
        return [
            request
            for request in self._running.values()
            if request.scheduler == scheduler and (names is None or request.sent_as in names)
        ]

    def _of_gateway(self, gateway: str) -> list[LiveRequest]:
        return [request for request in self._requests.values() if request.gateway == gateway]

    def _resend(self, requests: Iterable[LiveRequest], now: float) -> None:
        """Let them wait again for a scheduler; one that keeps losing its scheduler fails."""
        again = []
        for request in requests:
            request.num_resends += 1
            if request.num_resends > MAX_NUM_RESENDS:
                text = f"The request lost its scheduler {request.num_resends} times."
                self._fail(request, RequestError(FailureCode.INTERNAL, text))
                continue
            self.counts.resends += 1
            again.append(request)
        self._wait(again, now)

    # ── time, audits and full links ──────────────────────────────────────────────────────────────

    def _tick(self, now: float) -> None:
        self._schedulers.retry()
        unsent, self._unsent = self._unsent, {}
        for gateway, messages in unsent.items():
            if len(messages) > MAX_NUM_UNSENT:
                self._gateway_down(gateway)
            else:
                self._actions += [Send("gateway", gateway, message) for message in messages]
        for request in list(self._waiting.values()):
            if now - request.waiting_since >= WAIT_LIMIT_S:
                text = f"No scheduler took the request within {WAIT_LIMIT_S:g} s."
                self._fail(request, RequestError(FailureCode.UNAVAILABLE, text))
        if now >= self._next_audit:
            self._next_audit = now + self._audit_period_s
            for scheduler in self._schedulers:
                names = tuple(request.sent_as for request in self._running_at(scheduler))
                self._to_scheduler(scheduler, LiveRequests(names))

    def _audited(self, gateway: str, wanted: AbstractSet[str]) -> None:
        """Free what the gateway no longer wants, and say what of it is not here."""
        held = self._of_gateway(gateway)
        for request in held:
            if request.message.request_id not in wanted:
                self._cancel(request, "client_disconnected")
        unknown = sorted(wanted - {request.message.request_id for request in held})
        if unknown:
            self._to_gateway(gateway, UnknownRequests(tuple(unknown)))

    def _to_scheduler(self, scheduler: str, message: AnyMessage) -> None:
        self._actions.append(Send("scheduler", scheduler, message))

    def _to_gateway(self, gateway: str, message: AnyMessage) -> None:
        """Behind what the gateway has not taken yet, if there is such."""
        if gateway in self._unsent:
            self._keep(self._unsent[gateway], message)
        else:
            self._actions.append(Send("gateway", gateway, message))

    def _keep(self, unsent: list[AnyMessage], message: AnyMessage) -> None:
        match unsent[-1:], message:
            case [TextDeltas(kept)], TextDeltas(new) if (
                len(kept) + len(new) <= MAX_NUM_JOINED
                and _num_chars(kept) + _num_chars(new) <= MAX_NUM_CHARS
            ):
                unsent[-1] = TextDeltas(kept + new)
            case _:
                unsent.append(message)

    def _refused(self, send: Send) -> None:
        """A refused request waits for its turn again, text for a gateway is kept in order.

        Nothing else needs care: a lost cancellation or list of live requests is made good by the
        next list.
        """
        match send:
            case Send("scheduler", scheduler, GenerateRequest(request_id=sent_as)):
                self._schedulers.refused(scheduler)
                if (request := self._running.get(sent_as)) is not None:
                    self._wait([request], request.waiting_since)
            case Send("gateway", gateway, message):
                self._keep(self._unsent.setdefault(gateway, []), message)
            case _:
                pass


def _messages(deltas: Iterable[TextDelta]) -> Iterator[TextDeltas]:
    """As few as `MAX_NUM_CHARS` allows."""
    batch: list[TextDelta] = []
    num_chars = 0
    for delta in deltas:
        if batch and num_chars + len(delta.text) > MAX_NUM_CHARS:
            yield TextDeltas(tuple(batch))
            batch, num_chars = [], 0
        batch.append(delta)
        num_chars += len(delta.text)
    yield TextDeltas(tuple(batch))


def _num_chars(deltas: Iterable[TextDelta]) -> int:
    return sum(len(delta.text) for delta in deltas)
