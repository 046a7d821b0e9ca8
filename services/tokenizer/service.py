"""The tokenizer's shell: link events in, actions out. Decides nothing; see `requests.py`.

Prompts are encoded in threads, because a long one takes longer than the event loop may stand still.
While too many are being encoded, gateways are not read: their links fill up, and they notice.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import msgspec
import structlog

from common.clock import Clock, MonotonicClock
from common.config import TokenizerConfig
from common.errors import FailureCode, ProtocolError, RequestError
from common.link import Link, Peer
from common.messages import GenerateRequest, Heartbeat, RequestFailed
from common.metrics import TTFT_BUCKETS_S, counter, gauge, histogram
from common.token_ids import num_ids
from common.transport import Inbox, Outbox
from services.tokenizer.encode import Encoder
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
from services.tokenizer.model_info import read_model_info
from services.tokenizer.model_tokenizer import load_tokenizer
from services.tokenizer.requests import TokenizerState

ENCODE_THREADS = 2
# Prompts that may be in the threads' queue before gateways are not read any more.
MAX_NUM_ENCODING = 256
TICK_S = 0.25
IDLE_TICK_S = 1.0  # while no request is here
# Until what a full link did not take is tried again.
RETRY_S = 0.02

NUM_REQUESTS = gauge("tokenizer_num_requests", "Live requests by where they are", ("state",))
REQUESTS = counter("tokenize_requests", "Requests that came")
RESENDS = counter("tokenizer_resends", "Requests sent again because their scheduler was lost")
FAILURES = counter("tokenizer_failures", "Requests that failed here or downstream", ("code",))
ENCODE_SECONDS = histogram("tokenizer_encode_seconds", "Time to encode a prompt", TTFT_BUCKETS_S)

Links: TypeAlias = tuple[Link, Link]  # to gateways, to schedulers

logger = structlog.get_logger(__name__)


class TokenizerService:
    """A `common.lifecycle.Service`.

    Args:
        config: of the process.
        identity: who it is on the links.
        open_links: makes both links; for tests.
        clock: for tests.
    """

    def __init__(
        self,
        config: TokenizerConfig,
        identity: Peer,
        open_links: Callable[[], Links] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._config = config
        self._open_links = open_links or (
            lambda: (
                Inbox(config.bind, identity, config),
                Outbox(config.scheduler_address, identity, config),
            )
        )
        self._clock = clock or MonotonicClock()
        self._running: _Running | None = None

    @property
    def addresses(self) -> Mapping[str, str]:
        return {"bind": self._config.bind, "scheduler": self._config.scheduler_address}

    @property
    def is_ready(self) -> bool:
        return self._running is not None and self._running.is_ready

    @property
    def is_idle(self) -> bool:
        return self._running is None or self._running.is_idle

    async def start(self) -> None:
        encoder, state = await asyncio.to_thread(_load, self._config)
        self._running = _Running(encoder, state, self._open_links(), self._clock)

    async def run(self) -> None:
        if self._running is None:
            raise RuntimeError("run() before start()")
        await self._running.run()

    def drain(self) -> None:
        if self._running is not None:
            self._running.drain()

    async def stop(self, reason: str) -> None:
        if self._running is not None:
            await self._running.stop(reason)


def _load(config: TokenizerConfig) -> tuple[Encoder, TokenizerState]:
    """Read the model directory; takes a quarter of a second, or more."""
    encoder = Encoder(load_tokenizer(config.model, config.chat_template))
    model = read_model_info(
        config.model,
        name=config.served_model_name or config.model.resolve().name,
        max_token_id=encoder.max_token_id,
        tokenizer_eos_id=encoder.eos_id,
        max_model_len=config.max_model_len,
        with_sampling_defaults=config.generation_config == "auto",
    )
    logger.info(
        "tokenizer loaded", model=model.name, eos_ids=model.eos_ids, **model.sampling_defaults
    )
    return encoder, TokenizerState(model, encoder.vocabulary, config.audit_period_s)


class _Running:
    """The service between start and stop."""

    def __init__(self, encoder: Encoder, state: TokenizerState, links: Links, clock: Clock) -> None:
        self._encoder = encoder
        self._state = state
        self._gateways, self._schedulers = links
        self._clock = clock
        self._threads = ThreadPoolExecutor(ENCODE_THREADS, thread_name_prefix="encode")
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._num_encoding = 0  # prompts in the threads' queue, also of requests that are gone
        self._announced: Heartbeat | None = None
        self._counted_failures: Counter[str] = Counter()
        self._counted_requests = 0
        self._counted_resends = 0
        self._announce()

    @property
    def is_ready(self) -> bool:
        status = self._state.status
        return status.ready and not status.draining

    @property
    def is_idle(self) -> bool:
        return self._state.num_requests == 0 and not self._state.has_unsent

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._hear_gateways())
            tasks.create_task(self._hear_schedulers())
            tasks.create_task(self._tick())

    def drain(self) -> None:
        self._handle(Drain())

    async def stop(self, reason: str) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._gateways.close(reason)
        await self._schedulers.close(reason)

    async def _hear_gateways(self) -> None:
        while True:
            await self._has_room.wait()
            self._handle(await self._gateways.receive())

    async def _hear_schedulers(self) -> None:
        while True:
            self._handle(await self._schedulers.receive())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._pause_s())
            self._handle(Tick())
            self._announce()
            self._export()

    def _pause_s(self) -> float:
        if self._state.has_unsent:
            return RETRY_S
        return IDLE_TICK_S if self.is_idle and self._state.status.ready else TICK_S

    def _handle(self, event: Event) -> None:
        """Feed the state, and feed it what the links refuse of its actions."""
        events = [event]
        while events:
            now = self._clock.now()
            actions = [action for e in events for action in self._state.handle(e, now)]
            events = [SendRefused(send) for send in self._perform(actions)]
        if self._num_encoding < MAX_NUM_ENCODING:
            self._has_room.set()
        else:
            self._has_room.clear()
        if self._announced is None or _is_news(self._announced, self._state.status):
            self._announce()

    def _perform(self, actions: list[Action]) -> list[Send]:
        """Returns what the links have refused, in order."""
        refused: list[Send] = []
        full: set[str] = set()
        for action in actions:
            match action:
                case Encode():
                    self._encode(action)
                case Send(instance_id=instance_id):
                    if instance_id in full or not self._send(action):
                        full.add(instance_id)
                        refused.append(action)
                    else:
                        _trace(action)
                case Warn(event, fields):
                    logger.warning(event, **fields)
        return refused

    def _send(self, send: Send) -> bool:
        link = self._gateways if send.to == "gateway" else self._schedulers
        try:
            return link.send(send.instance_id, send.message)
        except ProtocolError as error:
            # Lost like any message: audits find out, and its request fails if it stays too large.
            logger.error("message not sent", peer=send.instance_id, reason=str(error))
            return True

    def _encode(self, job: Encode) -> None:
        self._num_encoding += 1
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._threads, self._encode_timed, job)
        future.add_done_callback(lambda done: self._encoded(job.ticket, done))

    def _encode_timed(self, job: Encode) -> bytes:
        """Runs in a thread."""
        with ENCODE_SECONDS.time():
            return self._encoder.encode(job.prompt, job.max_model_len)

    def _encoded(self, ticket: int, done: asyncio.Future[bytes]) -> None:
        if done.cancelled():
            return
        self._num_encoding -= 1
        match done.exception():
            case None:
                self._handle(Encoded(ticket, done.result()))
            case RequestError() as error:
                self._handle(EncodeFailed(ticket, error))
            case error:
                # A bug in a library or here costs this request, not the others.
                logger.error("encoding failed", exc_info=error)
                text = "The prompt could not be encoded."
                self._handle(EncodeFailed(ticket, RequestError(FailureCode.INTERNAL, text)))

    def _announce(self) -> None:
        self._announced = self._state.status
        self._gateways.set_status(self._announced)
        self._schedulers.set_status(self._announced)

    def _export(self) -> None:
        state, counts = self._state, self._state.counts
        NUM_REQUESTS.labels("encoding").set(state.num_encoding)
        NUM_REQUESTS.labels("waiting").set(state.num_waiting)
        NUM_REQUESTS.labels("running").set(
            state.num_requests - state.num_encoding - state.num_waiting
        )
        REQUESTS.inc(counts.requests - self._counted_requests)
        RESENDS.inc(counts.resends - self._counted_resends)
        for code, count in (counts.failures - self._counted_failures).items():
            FAILURES.labels(code).inc(count)
        self._counted_requests, self._counted_resends = counts.requests, counts.resends
        self._counted_failures = counts.failures.copy()


def _trace(send: Send) -> None:
    """One debug line per request and turn of its fate; what it says is nobody's business."""
    match send.message:
        case GenerateRequest() as request:
            logger.debug(
                "request sent",
                request_id=request.request_id,
                scheduler=send.instance_id,
                num_prompt_tokens=num_ids(request.prompt_ids),
                num_output_tokens=num_ids(request.output_ids),
            )
        case RequestFailed() as failure:
            logger.debug("request failed", request_id=failure.request_id, code=failure.code)


def _is_news(said: Heartbeat, now: Heartbeat) -> bool:
    """Worth a heartbeat of its own: all but the load, which changes with every request."""
    return msgspec.structs.replace(said, num_requests=now.num_requests) != now
