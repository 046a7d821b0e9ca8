"""One server of the comparison, from its start to the end of its last process."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil

from benchmarks.peers.install import last_line
from benchmarks.peers.process_tree import ProcessTree
from benchmarks.peers.recipe import Peer, Places
from tests.support.free_port import free_port

START_DEADLINE_S = 600.0  # vLLM compiles for minutes at its first start
POLL_S = 0.05


class ServerFailed(Exception):
    """It did not start, or did not answer as it should; the message says what it said."""


@dataclass
class Server:
    peer: Peer
    model: str  # its name in requests
    port: int
    tree: ProcessTree
    began: float  # monotonic seconds
    startup_s: float  # until it said that it is ready


@contextmanager
def serving(peer: Peer, places: Places, extra_flags: tuple[str, ...] = ()) -> Iterator[Server]:
    """A ready server, ended with all its processes when the block ends.

    Raises:
        ServerFailed: it ended, or was not ready in time.
    """
    here = replace(places, port=free_port())
    log = places.home(peer) / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("wb") as output:
        process = psutil.Popen(
            [*here.fill(peer, peer.start), *extra_flags],
            cwd=log.parent,
            env=_environment(peer, here),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with ProcessTree(process) as tree:
        _wait_ready(peer, here.port, tree, log)
        model = peer.served_name.format_map(here.values(peer))
        yield Server(peer, model, here.port, tree, began, time.monotonic() - began)


def _wait_ready(peer: Peer, port: int, tree: ProcessTree, log: Path) -> None:
    end = time.monotonic() + START_DEADLINE_S
    while not _is_ready(f"http://127.0.0.1:{port}{peer.ready}"):
        if tree.root.poll() is not None:
            raise ServerFailed(f"{peer.name} ended: {last_line(log)} (all of it in {log})")
        if time.monotonic() > end:
            raise ServerFailed(f"{peer.name} was not ready in {START_DEADLINE_S:.0f} s, see {log}")
        time.sleep(POLL_S)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _environment(peer: Peer, places: Places) -> dict[str, str]:
    """Ours, without what belongs to our own virtual environment."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    return inherited | places.environment(peer)
