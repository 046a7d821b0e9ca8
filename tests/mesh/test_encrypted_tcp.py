"""The topology of the compose file: a container each, tcp between them, one key pair for all."""

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.support.free_port import free_port
from tests.support.mesh import Mesh, Service, wait_until
from tests.support.serve_process import SPLITFUSE, complete

pytestmark = pytest.mark.mesh

PROMPT = "nobody on the way may read this"
WORKER = ("--kv-cache-memory", "16MiB", "--cpu-threads", "1")


class Wiretap:
    """A tcp port that passes everything on to another port, and remembers all of it."""

    def __init__(self, target: int) -> None:
        self.heard = bytearray()
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                caller, _ = self._listener.accept()
                try:
                    called = socket.create_connection(("127.0.0.1", self._target))
                except OSError:  # not there yet: the caller will try again
                    caller.close()
                    continue
                for ends in ((caller, called), (called, caller)):
                    threading.Thread(target=self._copy, args=ends, daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError), source, sink:
            while data := source.recv(65536):
                self.heard += data
                sink.sendall(data)


class TcpMesh(Mesh):
    """Services started by `splitfuse KIND`, linked by tcp; gateways go through the wiretap."""

    def __init__(self, model: Path, *security: str) -> None:
        super().__init__(
            model,
            gateway_flags=security,
            tokenizer_flags=security,
            scheduler_flags=security,
            worker_flags=(*security, *WORKER),
        )
        self._tokenizer, self._scheduler = free_port(), free_port()
        self.wiretap = Wiretap(self._tokenizer)

    def _command(self, kind: str) -> tuple[str, ...]:
        return (*SPLITFUSE, kind)

    def _addresses(self, kind: str) -> tuple[str, ...]:
        scheduler = f"tcp://127.0.0.1:{self._scheduler}"
        model = ("--model", str(self.model))
        return {
            "gateway": ("--tokenizer-address", f"tcp://127.0.0.1:{self.wiretap.port}"),
            "tokenizer": (
                *("--bind", f"tcp://127.0.0.1:{self._tokenizer}"),
                *("--scheduler-address", scheduler),
                *model,
            ),
            "scheduler": ("--bind", scheduler),
            "worker": ("--scheduler-address", scheduler, *model),
        }[kind]


@contextmanager
def tcp_mesh(model: Path, *security: str) -> Iterator[TcpMesh]:
    with TcpMesh(model, *security) as mesh:
        try:
            yield mesh
        finally:
            mesh.wiretap.close()


def make_keys(directory: Path) -> Path:
    subprocess.run([*SPLITFUSE, "keys", str(directory), "--keep"], check=True, capture_output=True)
    return directory


def test_with_keys_a_completion_is_served_and_nothing_of_it_can_be_read_on_the_way(
    tiny_model: Path, tmp_path: Path
) -> None:
    with tcp_mesh(tiny_model, "--mesh-keys", str(make_keys(tmp_path / "mesh"))) as mesh:
        assert complete(mesh.url, PROMPT)

        assert b"CURVE" in mesh.wiretap.heard
        assert PROMPT.encode() not in mesh.wiretap.heard
        for secret in (b"tokenizer-0", tiny_model.name.encode()):
            assert secret not in mesh.wiretap.heard


def test_without_keys_the_wiretap_reads_along(tiny_model: Path) -> None:
    with tcp_mesh(tiny_model) as mesh:
        assert complete(mesh.url, PROMPT)

        assert PROMPT.encode() in mesh.wiretap.heard


def test_who_has_other_keys_finds_nobody(tiny_model: Path, tmp_path: Path) -> None:
    with tcp_mesh(tiny_model, "--mesh-keys", str(make_keys(tmp_path / "mesh"))) as mesh:
        stranger = mesh.spawn(
            "gateway", "gateway-stranger", "--mesh-keys", str(make_keys(tmp_path / "other"))
        )
        wait_until(lambda: "handshake" in stranger.log.read_text(), "the stranger is refused")

        assert ready_status(stranger) == 503
        assert complete(mesh.url, PROMPT)


def ready_status(service: Service) -> int:
    return httpx.get(f"{service.url}/health/ready", timeout=10).status_code
