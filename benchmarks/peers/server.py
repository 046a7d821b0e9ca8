"""One server of the comparison, from its start to the end of its last process."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from benchmarks.peers.recipe import Peer, Places
from common.errors import StartupError
from splitfuse.bench.process_tree import ProcessTree
from splitfuse.bench.server_process import free_port, outside_environ, server_process


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
    command = [*here.fill(peer, peer.start), *extra_flags]
    environ = outside_environ() | here.environment(peer)
    ready_url = f"http://127.0.0.1:{here.port}{peer.ready}"
    log = places.home(peer) / "server.log"
    try:
        with server_process(
            peer.name, command, environ, ready_url, log, cwd=log.parent, is_watched=True
        ) as process:
            model = peer.served_name.format_map(here.values(peer))
            yield Server(peer, model, here.port, process.tree, process.began, process.startup_s)
    except StartupError as error:
        raise ServerFailed(str(error)) from error
