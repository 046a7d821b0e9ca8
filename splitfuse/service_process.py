"""One service as a child process: its output line by line, and three ways to end it."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Self

from splitfuse.death_pact import death_pact
from splitfuse.forked_service import Fork, ForkedProcess
from splitfuse.mesh_plan import ServiceSpec

TAIL_LINES = 20
LONGEST_LINE_BYTES = 1 << 20
SOCKET_MIN_AGE_S = 1.0  # a younger socket may belong to a service that is just binding it


class ServiceProcess:
    """A running service; make it with `start` or `adopt`."""

    def __init__(
        self, spec: ServiceSpec, process: asyncio.subprocess.Process | ForkedProcess
    ) -> None:
        self.spec = spec
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)  # its last lines, oldest first
        self.ended = asyncio.Event()  # set by `wait`
        self._process = process
        self._started = time.monotonic()

    @classmethod
    async def start(cls, spec: ServiceSpec) -> Self:
        """Start it in a session of its own: a Ctrl-C in the terminal reaches only us."""
        process = await asyncio.create_subprocess_exec(
            *spec.command,
            env=spec.environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LONGEST_LINE_BYTES,
            start_new_session=True,
            preexec_fn=death_pact() if sys.platform == "linux" else None,
        )
        return cls(spec, process)

    @classmethod
    async def adopt(cls, spec: ServiceSpec, fork: Fork) -> Self:
        """Take over one that was forked before there was an event loop."""
        return cls(spec, await ForkedProcess.adopt(fork, LONGEST_LINE_BYTES))

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._started

    async def wait(self, on_line: Callable[[str], None]) -> int:
        """Hand over its lines until it ends; returns its exit code (negative: the signal)."""
        assert self._process.stdout is not None  # noqa: S101  we asked for a pipe
        while True:
            try:
                raw = await self._process.stdout.readline()
            except ValueError:  # longer than LONGEST_LINE_BYTES; asyncio has dropped it
                continue
            if not raw:
                exit_code = await self._process.wait()
                self.ended.set()
                return exit_code
            line = raw.decode(errors="replace").rstrip()
            self.tail.append(line)
            on_line(line)

    def terminate(self) -> None:
        """Ask it to drain and leave."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and whatever it has started, at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(self._process.pid, number)
                else:
                    self._process.send_signal(number)


def remove_dead_sockets(directory: Path) -> None:
    """Remove the sockets in `directory` that nobody listens on: a killed service leaves its own."""
    for path in directory.glob("*"):
        with contextlib.suppress(OSError):
            if path.is_socket() and time.time() - path.stat().st_mtime >= SOCKET_MIN_AGE_S:
                with socket.socket(socket.AF_UNIX) as probe:
                    try:
                        probe.connect(str(path))
                    except ConnectionRefusedError:
                        path.unlink()
