"""The shell around `GatewayState`: a link on one side, a mailbox per HTTP request on the other."""

import asyncio
from collections.abc import Sequence

import structlog

from common.clock import Clock
from common.errors import FailureCode, ProtocolError, RequestError
from common.link import Link
from common.messages import CancelReason, Heartbeat, TextDelta, TokenizeRequest
from common.token_ids import num_ids
from services.gateway import metrics
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
from services.gateway.mailbox import Mailbox
from services.gateway.streams import GatewayState

# How exactly deadlines are kept, and how soon an interrupted stream is offered again.
TICK_S = 0.1
# The same while nothing is in work: a deadline that short may be kept so late.
IDLE_TICK_S = 0.5

logger = structlog.get_logger(__name__)


class _Open:
    """A live sequence, seen from its client."""

    __slots__ = ("arrived", "index", "last_delta", "mailbox", "num_tokens", "was_sent")

    def __init__(self, mailbox: Mailbox, index: int, arrived: float) -> None:
        self.mailbox = mailbox
        self.index = index
        self.arrived = arrived
        self.last_delta: float | None = None
        self.num_tokens = 0
        self.was_sent = False


class Mesh:
    """Sends sequences into the mesh and fills their mailboxes.

    Args:
        link: to the tokenizers.
        state: decides; nobody else may call its `handle`.
        clock: of deadlines and latencies.
    """

    def __init__(self, link: Link, state: GatewayState, clock: Clock) -> None:
        self.state = state
        self.draining = False
        self._link = link
        self._clock = clock
        self._open: dict[str, _Open] = {}
        self._num_answers = 0  # submitted and not released
        self._num_uncounted_tokens = 0  # delivered since the last report

    @property
    def is_idle(self) -> bool:
        """No answer is in work or still being written."""
        return self._num_answers == 0

    def submit(
        self, requests: Sequence[TokenizeRequest], model: str, timeout_s: float | None
    ) -> Mailbox:
        """Start admitted requests; they fill one mailbox, the i-th as choice i.

        Whoever submits must `release`.
        """
        self._num_answers += 1
        now = self._clock.now()
        mailbox = Mailbox(len(requests))
        for index, request in enumerate(requests):
            if mailbox.has_failed:
                break  # one refused choice fails the answer: spare the mesh the others
            self._open[request.request_id] = _Open(mailbox, index, now)
            self._handle(Submit(request, model, timeout_s))
        return mailbox

    def release(self, requests: Sequence[TokenizeRequest], reason: CancelReason) -> None:
        """The answer is over, for `reason` if not by itself: cancel what is still in work."""
        self._num_answers -= 1
        for request in requests:
            if self._open.pop(request.request_id, None) is not None:
                metrics.requests_cancelled.inc()
                self._handle(Abandon(request.request_id, reason))

    def shut_down(self) -> None:
        """End all that is in work, with an error to its clients, and take nothing more."""
        self.draining = True
        error = RequestError(FailureCode.UNAVAILABLE, "the server is shutting down")
        for request_id, open_ in list(self._open.items()):
            del self._open[request_id]
            self._handle(Abandon(request_id, "shutdown"))
            open_.mailbox.fail(error)

    async def run(self) -> None:
        """Serve the link until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._receive())
            tasks.create_task(self._tick())

    async def _receive(self) -> None:
        while True:
            self._handle(await self._link.receive())

    async def _tick(self) -> None:
        while True:
            self._handle(Tick())
            self.report_status()
            is_quiet = self.is_idle and self.state.is_ready
            await asyncio.sleep(IDLE_TICK_S if is_quiet else TICK_S)

    def report_status(self) -> None:
        """Tell the peers and the metrics how we are."""
        num_requests = self.state.num_requests
        metrics.num_requests.set(num_requests)
        metrics.generation_tokens.inc(self._num_uncounted_tokens)
        self._num_uncounted_tokens = 0
        self._link.set_status(Heartbeat(self.state.is_ready, self.draining, num_requests))

    # ── events in, actions out ───────────────────────────────────────────────────────────────────

    def _handle(self, event: Event) -> None:
        now = self._clock.now()
        self._perform(self.state.handle(event, now), now)

    def _perform(self, actions: Sequence[Action], now: float) -> None:
        for action in actions:
            match action:
                case Deliver(delta):
                    self._deliver(delta, now)
                case Send():
                    self._send(action, now)
                case Fail(request_id, error):
                    self._fail(request_id, error)

    def _send(self, action: Send, now: float) -> None:
        message, too_large = action.message, None
        if isinstance(message, TokenizeRequest):
            self._count_sending(message.request_id, action.instance_id)
        try:
            taken = self._link.send(action.instance_id, message)
        except ProtocolError as error:
            taken = False
            too_large = RequestError(FailureCode.REQUEST_TOO_LARGE, str(error), "prompt")
        if not taken:
            refused = SendRefused(action.instance_id, message, too_large)
            self._perform(self.state.handle(refused, now), now)

    def _count_sending(self, request_id: str, instance_id: str) -> None:
        open_ = self._open[request_id]
        if open_.was_sent:
            metrics.request_resends.inc()
            logger.info("request resumed", request_id=request_id, peer=instance_id)
        open_.was_sent = True

    def _deliver(self, delta: TextDelta, now: float) -> None:
        open_ = self._open[delta.request_id]
        num_tokens = num_ids(delta.token_ids)
        if open_.last_delta is None:
            metrics.time_to_first_token.observe(now - open_.arrived)
        else:
            metrics.inter_token_latency.observe((now - open_.last_delta) / max(1, num_tokens))
        open_.last_delta = now
        open_.num_tokens += num_tokens
        self._num_uncounted_tokens += num_tokens
        if delta.finish_reason is not None:
            del self._open[delta.request_id]
            _count_success(open_, delta, now)
        open_.mailbox.put(open_.index, delta)

    def _fail(self, request_id: str, error: RequestError) -> None:
        open_ = self._open.pop(request_id)
        metrics.request_failures.labels(code=error.code).inc()
        open_.mailbox.fail(error)


def _count_success(open_: _Open, last: TextDelta, now: float) -> None:
    metrics.e2e_request_latency.observe(now - open_.arrived)
    metrics.request_prompt_tokens.observe(last.num_prompt_tokens)
    metrics.request_generation_tokens.observe(open_.num_tokens)
    metrics.prompt_tokens.inc(max(0, last.num_prompt_tokens))  # what a peer says may be absurd
    metrics.request_success.labels(finished_reason=last.finish_reason).inc()
