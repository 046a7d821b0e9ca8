"""A server that is started to be measured, from its start to the end of its last process."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from common.errors import StartupError
from splitfuse.bench.process_tree import ProcessTree

START_DEADLINE_S = 600.0  # some compile for minutes at their first start
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """It is ready."""

    tree: ProcessTree
    began: float  #: monotonic seconds
    startup_s: float  #: until it said that it is ready


@contextmanager
def server_process(
    name: str,
    command: Sequence[str],
    environ: Mapping[str, str],
    ready_url: str,
    log: Path,
    *,
    cwd: Path | None = None,
    is_watched: bool = False,
) -> Iterator[ServerProcess]:
    """A ready server, ended with all its processes when the block ends.

    Args:
        name: what errors call it.
        ready_url: answers 200 once it can serve.
        log: what it prints goes to this file; its folder is made.
        cwd: where it runs; default: where we do.
        is_watched: as `ProcessTree` has it.

    Raises:
        StartupError: it ended, or was not ready in time; has its last words.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("wb") as output:
        process = psutil.Popen(
            command,
            cwd=cwd,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with ProcessTree(process, is_watched=is_watched) as tree:
        _wait_ready(name, ready_url, tree, log)
        yield ServerProcess(tree, began, time.monotonic() - began)


def free_port() -> int:
    """A tcp port that nobody listens on; another process could take it before the caller does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def last_line(log: Path) -> str:
    """The last words of whoever wrote the file."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"


def outside_environ() -> dict[str, str]:
    """Ours, without what belongs to our own virtual environment."""
    return {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}


def _wait_ready(name: str, url: str, tree: ProcessTree, log: Path) -> None:
    end = time.monotonic() + START_DEADLINE_S
    while not _is_ready(url):
        if tree.root.poll() is not None:
            raise StartupError(f"{name} ended: {last_line(log)} (all of it in {log})")
        if time.monotonic() > end:
            raise StartupError(f"{name} was not ready in {START_DEADLINE_S:.0f} s, see {log}")
        time.sleep(POLL_S)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
