"""uvicorn inside our own event loop and life: sockets and signals stay ours."""

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from common.config import GatewayConfig
from common.errors import StartupError

# At shutdown, how long responses that are already failed or finished may take to be read.
_GRACE_S = 2
_KEEP_ALIVE_S = 30
_HOUSEKEEPING_S = 1.0  # the age of the date header
# Request line and headers, or trailers; what one read brings may exceed it.
_MAX_HEAD_BYTES = 64 * 1024


class _BoundedHead(HttpToolsProtocol):
    """Refuses a head that does not end: the parser would keep all of it."""

    _num_kept_bytes = 0  # since the parser last had something to hand out

    def data_received(self, data: bytes) -> None:
        self._num_kept_bytes += len(data)
        super().data_received(data)
        if self._num_kept_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head of the request exceeds {_MAX_HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        self._num_kept_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_kept_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_kept_bytes = 0
        super().on_message_complete()


class HttpServer:
    """Listens from `start` on, serves until `stop`.

    Args:
        app: an ASGI application.
        config: host and port, or unix socket.
    """

    def __init__(self, app: Callable[..., Any], config: GatewayConfig) -> None:
        self._uds = config.uds
        self._host, self._port = config.host, config.port
        self._socket: socket.socket | None = None
        self._config = uvicorn.Config(
            app,
            http=_BoundedHead,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACE_S,
        )
        self._server = uvicorn.Server(self._config)

    @property
    def url(self) -> str:
        """Where clients reach it, with the real port."""
        if self._uds is not None:
            return f"unix:{self._uds}"
        port = self._port if self._socket is None else self._socket.getsockname()[1]
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{port}"

    async def start(self) -> None:
        """Raises StartupError if the address is taken or does not exist."""
        self._socket = (
            _bind_unix(self._uds) if self._uds is not None else _bind_tcp(self._host, self._port)
        )
        self._config.load()
        self._server.lifespan = self._config.lifespan_class(self._config)
        await self._server.startup(sockets=[self._socket])

    async def run(self) -> None:
        """uvicorn's own housekeeping, once a second instead of ten times; serve until cancelled."""
        while True:
            await self._server.on_tick(counter=0)
            await asyncio.sleep(_HOUSEKEEPING_S)

    async def stop(self) -> None:
        """Take no more connections, let responses end for a short while, close the rest."""
        if self._socket is None:
            return
        if self._server.started:
            await self._server.shutdown(sockets=[self._socket])
        self._socket.close()
        if self._uds is not None:
            self._uds.unlink(missing_ok=True)


def _bind_tcp(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # A name with addresses of both families means the IPv4 one, as for most clients.
        family, kind, protocol, _, address = min(found, key=lambda entry: entry[0])
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartupError(f"cannot serve HTTP on {host!r}: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise StartupError(
            f"cannot serve HTTP on {host}:{port}: {error.strerror}; choose another --host or --port"
        ) from None
    return listener


def _bind_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_if_stale(path)
        listener.bind(str(path))
        os.chmod(path, 0o600)  # nobody can connect before it listens
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise StartupError(f"cannot serve HTTP on {path}: {error.strerror or error}") from None
    return listener


def _remove_if_stale(path: Path) -> None:
    """Remove the socket of a process that is gone; anything else stays and makes `bind` fail."""
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
