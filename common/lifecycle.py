"""The life of every service process: start, be ready, drain, stop, and the exit code.

    raise SystemExit(lifecycle.run("tokenizer", TokenizerService, config))

    exit 0   asked to stop (SIGTERM, SIGINT) and stopped
    exit 1   crashed: an exception nobody expected, with its traceback in the log
    exit 2   a flag, variable or file is unusable (ConfigError)
    exit 3   cannot start: address taken, model unreadable (StartupError)

The first signal drains: no new work is taken, what runs is finished, for at most
`shutdown_timeout_s`. The second one stops at once.
"""

import asyncio
import gc
import os
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Protocol, TypeVar

import structlog
import uvloop

from common import log
from common.clock import MonotonicClock
from common.config import EXIT_CONFIG, ServiceOptions
from common.errors import ConfigError, StartupError
from common.link import Peer
from common.messages import ServiceKind
from common.probe import Health, Probe

EXIT_OK: Final = 0
EXIT_CRASH: Final = 1
EXIT_START: Final = 3

_BEAT_S: Final = 1.0
_BEAT_UNREADY_S: Final = 0.25  # whoever waits for it asks often
_IDLE_CHECK_S: Final = 0.02
_STOP_LIMIT_S: Final = 3.0  # a terminal waits for Ctrl-C

logger = structlog.get_logger(__name__)


class Service(Protocol):
    """What a service process runs. All methods are called in its one event loop."""

    @property
    def addresses(self) -> Mapping[str, str]:
        """Where it listens, for the log line "ready": e.g. {"bind": "tcp://0.0.0.0:7101"}."""
        ...

    @property
    def is_ready(self) -> bool:
        """It can take work now; asked only after `start`."""
        ...

    @property
    def is_idle(self) -> bool:
        """It holds no request: nothing is lost if it stops now."""
        ...

    async def start(self) -> None:
        """Load what must be loaded and open the links; may take long, may be cancelled.

        Raises:
            ConfigError, StartupError: it cannot; the message says why.
        """
        ...

    async def run(self) -> None:
        """Serve until cancelled. Returning or raising is a crash."""
        ...

    def drain(self) -> None:
        """Take no new work from here on and tell the peers so; `run` goes on."""
        ...

    async def stop(self, reason: str) -> None:
        """Say goodbye and release everything; called once, whatever happened before."""
        ...


ServiceConfig = TypeVar("ServiceConfig", bound=ServiceOptions)


def make_identity(kind: ServiceKind, name: str | None) -> Peer:
    """Who this process is. Its instance id is fresh, its name may live on over restarts."""
    host = "".join(c for c in socket.gethostname() if c.isascii() and (c.isalnum() or c in "-_"))
    return Peer(kind, name or f"{kind}-{host[:32]}-{os.getpid()}", uuid.uuid4().hex[:16])


def run(
    kind: ServiceKind, factory: Callable[[ServiceConfig, Peer], Service], config: ServiceConfig
) -> int:
    """Be one service until it ends; returns the exit code.

    Args:
        factory: makes the service, inside the running loop, from its config and identity.
    """
    identity = make_identity(kind, config.name)
    log.configure(config.log_level, config.log_format, service=kind, name=identity.name)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_live(lambda: factory(config, identity), config))
    except ConfigError as error:
        logger.error("unusable configuration", reason=str(error))
        return EXIT_CONFIG
    except StartupError as error:
        logger.error("cannot start", reason=str(error))
        return EXIT_START
    except Exception:
        logger.exception("crashed")
        return EXIT_CRASH
    return EXIT_OK


class _Interruptions:
    """What may end a service from outside, as futures: two signals, or a crash in a callback."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.asked: asyncio.Future[None] = self._loop.create_future()
        self.forced: asyncio.Future[None] = self._loop.create_future()
        self._crash: asyncio.Future[None] = self._loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal, number)
        self._loop.set_exception_handler(self._on_exception)

    async def race(self, *futures: asyncio.Future[None], limit_s: float | None = None) -> None:
        """Wait for the first of these, a crash or the limit; raises what has failed."""
        done, _ = await asyncio.wait(
            {*futures, self._crash}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
        )
        for future in done:
            future.result()

    def _on_signal(self, number: signal.Signals) -> None:
        logger.info("asked to stop", signal=signal.Signals(number).name)
        for future in (self.asked, self.forced):
            if not future.done():
                future.set_result(None)
                return

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception that no task awaits: the state is unknown, so the process ends.

        Broken connections are everyday life and end nothing.
        """
        error = context.get("exception")
        logger.error("unhandled", detail=context["message"], exc_info=error)
        if not isinstance(error, Exception) or isinstance(error, OSError) or self._crash.done():
            return
        self._crash.set_exception(error)
        self._crash.exception()  # it counts as seen even when nobody races any more


async def _live(factory: Callable[[], Service], config: ServiceOptions) -> None:
    interruptions = _Interruptions()
    health = Health(MonotonicClock())
    with _probe(config, health):
        service = factory()
        started = asyncio.Event()
        beating = asyncio.create_task(_beat(service, started, health))
        reason = "failed"
        try:
            await _serve(service, started, interruptions, config.shutdown_timeout_s)
            reason = "shut down"
        finally:
            beating.cancel()
            await _stop(service, reason)


@contextmanager
def _probe(config: ServiceOptions, health: Health) -> Iterator[None]:
    if config.probe_port == 0:
        yield
        return
    probe = Probe(config.probe_host, config.probe_port, health)
    try:
        yield
    finally:
        probe.close()


async def _beat(service: Service, started: asyncio.Event, health: Health) -> None:
    while True:
        ready = started.is_set() and service.is_ready
        health.beat(ready)
        await asyncio.sleep(_BEAT_S if ready else _BEAT_UNREADY_S)


async def _serve(
    service: Service, started: asyncio.Event, interruptions: _Interruptions, drain_limit_s: float
) -> None:
    """Start, run and drain; returns when the service was asked to stop and may."""
    async with _task(service.start()) as starting:
        await interruptions.race(starting, interruptions.asked)
        if not starting.done():
            return
    started.set()
    gc.freeze()  # lives until the end: a full collection would look through it for 30 ms
    logger.info("ready", **service.addresses)
    async with _task(service.run()) as serving:
        await interruptions.race(serving, interruptions.asked)
        if not interruptions.asked.done():
            raise RuntimeError("the service ended by itself")
        service.drain()
        async with _task(_until_idle(service)) as idle:
            await interruptions.race(serving, idle, interruptions.forced, limit_s=drain_limit_s)


@asynccontextmanager
async def _task(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Work beside the block; cancelled, and waited for, when the block ends first."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        was_running = task.cancel()
        await asyncio.wait({task})
        error = None if task.cancelled() else task.exception()
        if was_running and error is not None:
            logger.warning("failed while being stopped", exc_info=error)


async def _until_idle(service: Service) -> None:
    while not service.is_idle:  # noqa: ASYNC110  a question to the service, no event of ours
        await asyncio.sleep(_IDLE_CHECK_S)


async def _stop(service: Service, reason: str) -> None:
    try:
        async with asyncio.timeout(_STOP_LIMIT_S):
            await service.stop(reason)
    except TimeoutError:
        logger.warning("stopping took too long", limit_s=_STOP_LIMIT_S)
    logger.info("stopped", reason=reason)
