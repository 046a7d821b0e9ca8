"""Run a mesh on this machine: start its services, restart those that die, end all of them.

Decisions are in `restart_policy` and `mesh_plan`; this is the shell that starts processes, reads
their output, asks the gateways whether they are ready, and listens to signals.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import httpx

from common.config import EXIT_CONFIG
from common.errors import ConfigError, SplitfuseError, StartupError
from splitfuse.forked_service import Fork
from splitfuse.mesh_plan import ServiceSpec
from splitfuse.restart_policy import GiveUp, Restart, RestartPolicy, describe_exit
from splitfuse.service_process import ServiceProcess, remove_dead_sockets
from splitfuse.terminal import Terminal

READY_POLL_S = 0.1
LEAVE_S = 1.0  # beyond the time to drain; then a service is killed


class Supervisor:
    """A mesh from start to end; `run` it once.

    Args:
        specs: the services; gateways are asked to leave before the others.
        ready_urls: /health/ready of each gateway.
        uds: the unix socket behind those URLs, if they are no TCP ports.
        drain_s: what the services were told as their time to finish requests.
        forks: services that were started already, by name.
    """

    def __init__(
        self,
        specs: Iterable[ServiceSpec],
        *,
        sockets: Iterable[Path],
        ready_urls: Iterable[str],
        uds: Path | None,
        drain_s: float,
        terminal: Terminal,
        forks: Mapping[str, Fork] = MappingProxyType({}),
    ) -> None:
        self._specs = list(specs)
        self._sockets = list(sockets)
        self._ready_urls = list(ready_urls)
        self._uds = uds
        self._drain_s = drain_s
        self._terminal = terminal
        self._forks = dict(forks)
        self._running: dict[str, ServiceProcess] = {}
        self._was_ready = False
        self._stopping = asyncio.Event()
        self._failure: SplitfuseError | None = None

    async def run(self, on_ready: Callable[[], None], *, until_stdin_closes: bool = False) -> None:
        """Serve until SIGINT, SIGTERM or the end of standard input.

        Returns after the last service has ended.

        Raises:
            ConfigError: a service calls its configuration unusable (carries its last words), or
                standard input cannot be watched.
            StartupError: a service cannot work; likewise.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        if until_stdin_closes:
            _watch_stdin(self._stopping.set)
        tasks = [asyncio.create_task(self._keep(spec)) for spec in self._specs]
        tasks.append(asyncio.create_task(self._announce(on_ready)))
        for task in tasks:
            task.add_done_callback(self._on_done)
        try:
            await self._stopping.wait()
            tasks[-1].cancel()
            await self._end_services()
        finally:
            self._stopping.set()
            self._kill_all()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for error in (self._failure, *ends):
            if isinstance(error, Exception):
                raise error

    def _on_done(self, task: asyncio.Task[None]) -> None:
        """Nothing may fail silently: a broken task ends the mesh, and `run` raises its error."""
        if not task.cancelled() and task.exception() is not None:
            self._stopping.set()

    def _kill_all(self) -> None:
        for service in self._running.values():
            service.kill()

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            self._kill_all()
            return
        self._terminal.say("Stopping (once more to kill at once)")
        self._stopping.set()

    async def _keep(self, spec: ServiceSpec) -> None:
        """Keep one service running until the mesh stops."""
        policy = RestartPolicy()
        while not self._stopping.is_set():
            service = await self._start(spec)
            self._running[spec.name] = service
            if self._stopping.is_set():
                service.kill()
            exit_code = await service.wait(lambda line: self._terminal.log(spec.name, line))
            del self._running[spec.name]
            if self._stopping.is_set():
                return
            for directory in self._sockets:
                remove_dead_sockets(directory)
            verdict = policy.ended(exit_code, service.uptime_s, mesh_was_ready=self._was_ready)
            match verdict:
                case GiveUp():
                    self._fail(service, verdict)
                case Restart(delay_s=delay_s):
                    self._terminal.say(
                        f"{spec.name} ended ({describe_exit(exit_code)}); restart in {delay_s:g} s"
                    )
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._stopping.wait(), delay_s)

    async def _start(self, spec: ServiceSpec) -> ServiceProcess:
        if (fork := self._forks.pop(spec.name, None)) is not None:
            return await ServiceProcess.adopt(spec, fork)
        return await ServiceProcess.start(spec)

    def _fail(self, service: ServiceProcess, verdict: GiveUp) -> None:
        last_words = service.tail[-1] if service.tail else "it said nothing"
        error = ConfigError if verdict.exit_code == EXIT_CONFIG else StartupError
        self._failure = error(f"{service.spec.name} {verdict.reason}: {last_words}")
        self._stopping.set()

    async def _announce(self, on_ready: Callable[[], None]) -> None:
        started = time.monotonic()
        transport = httpx.AsyncHTTPTransport(uds=None if self._uds is None else str(self._uds))
        with self._terminal.waiting("Starting services and loading the model") as still_waiting:
            async with httpx.AsyncClient(transport=transport, timeout=5) as http:
                for url in self._ready_urls:
                    async for _ in _until_ok(http, url):
                        still_waiting(time.monotonic() - started)
        self._was_ready = True
        on_ready()

    async def _end_services(self) -> None:
        """Gateways first, so that running requests find the others alive until they are done."""
        gateways = [s for s in self._running.values() if s.spec.kind == "gateway"]
        others = [s for s in self._running.values() if s.spec.kind != "gateway"]
        if self._failure is None:
            await self._end(gateways, self._drain_s + LEAVE_S / 2)
        else:
            others += gateways
        await self._end(others, LEAVE_S)

    async def _end(self, services: list[ServiceProcess], limit_s: float) -> None:
        for service in services:
            service.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                for service in services:
                    await service.ended.wait()
        for service in services:
            service.kill()


async def _until_ok(http: httpx.AsyncClient, url: str) -> AsyncIterator[None]:
    """Yields after each time that `url` did not answer 200."""
    while True:
        with contextlib.suppress(httpx.TransportError):
            if (await http.get(url)).status_code == httpx.codes.OK:
                return
        yield
        await asyncio.sleep(READY_POLL_S)


def _watch_stdin(on_end: Callable[[], None]) -> None:
    """Call `on_end` when standard input ends; what comes before is thrown away.

    Raises:
        ConfigError: it is a file or /dev/null, whose end is not an event.
    """

    def read() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            on_end()

    descriptor = sys.stdin.fileno()
    loop = asyncio.get_running_loop()
    try:
        loop.add_reader(descriptor, read)
    except PermissionError:
        raise ConfigError(
            "--until-stdin-closes: standard input must be a pipe or a terminal, not a file"
        ) from None
