"""A service as a fork of this process, which has imported what all services import.

Four interpreters that import the same modules take four times as long, on a laptop most of the time
from a command to its first answer. So `splitfuse serve` imports once and forks, as long as it is
nothing but one thread; services that are started again later, on another system, or by anyone else
are new interpreters.
"""

import asyncio
import gc
import io
import logging
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import setproctitle

from splitfuse.app_tree import module_and_arguments
from splitfuse.death_pact import death_pact
from splitfuse.mesh_plan import ServiceSpec

_TASKS = "/proc/self/task"
_DESCRIPTORS = "/proc/self/fd"


@dataclass(frozen=True, slots=True)
class Fork:
    """A service that runs, and where its output can be read."""

    pid: int
    output: int  # a descriptor, ours to close


def fork_services(specs: Iterable[ServiceSpec]) -> dict[str, Fork]:
    """Start services, before there is an event loop; by name. None where we must not fork."""
    if not _has_pidfd():
        return {}
    _preload()
    return {spec.name: fork_service(spec) for spec in specs} if has_one_thread() else {}


def _has_pidfd() -> bool:
    """Whether the kernel tells by a descriptor when a process ends: Linux since 5.3, if allowed."""
    if sys.platform != "linux":
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def has_one_thread() -> bool:
    """Whether nothing here runs in another thread, which a fork would cut short. Linux only."""
    return len(os.listdir(_TASKS)) == 1


def _preload() -> None:
    """Import what every service does, and nothing that reads the environment."""
    import common.lifecycle
    import common.transport  # noqa: F401

    gc.collect()
    gc.freeze()  # what is not collected is not written to, and stays shared


def fork_service(spec: ServiceSpec) -> Fork:
    """Start a service in a session of its own; in the child, this never returns."""
    promise = death_pact()
    output, its_output = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        exit_code = 1
        try:
            exit_code = _live(spec, its_output, promise)
        finally:  # whatever it was: the frames below are the parent's
            os._exit(exit_code)
    os.close(its_output)
    return Fork(pid, output)


class ForkedProcess:
    """What `asyncio.subprocess.Process` is for a program, as far as it is needed here."""

    def __init__(self, fork: Fork, stdout: asyncio.StreamReader) -> None:
        self.pid = fork.pid
        self.stdout = stdout
        self.returncode: int | None = None

    @classmethod
    async def adopt(cls, fork: Fork, limit: int) -> Self:
        """In the event loop that will read its output, lines of up to `limit` bytes."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit)
        pipe = os.fdopen(fork.output, "rb", buffering=0)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        return cls(fork, reader)

    async def wait(self) -> int:
        """Its exit code; minus the signal that ended it. To be called once."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        descriptor = os.pidfd_open(self.pid)
        try:
            loop.add_reader(descriptor, ended.set)
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        _, status = os.waitpid(self.pid, 0)  # noqa: ASYNC222  it has ended
        self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _live(spec: ServiceSpec, output: int, promise: Callable[[], None]) -> int:
    """The child's whole life; returns its exit code."""
    try:
        promise()
        _leave_parent(output)
        module, arguments = module_and_arguments(spec.command)
        setproctitle.setproctitle(" ".join(spec.command))
        os.environ.clear()
        os.environ.update(spec.environ)
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return _exit_code(end)
    except Exception:  # noqa: BLE001  the last one that can say it
        traceback.print_exc()
        return 1
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _leave_parent(output: int) -> None:
    """What a new program would not have of us: session, files, signal handlers."""
    os.setsid()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for name in os.listdir(_DESCRIPTORS):
        if int(name) > 2:
            with suppress(OSError):  # the one of the listing itself
                os.close(int(name))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _exit_code(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1
