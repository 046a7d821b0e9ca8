"""Health and metrics of a service over HTTP, for orchestrators and Prometheus.

    GET /health, /health/live   200 while the event loop turns, else 503
    GET /health/ready           200 while the service can take work, else 503
    GET /metrics                Prometheus text

Served from threads of its own, so that a blocked event loop is answered with 503 and not with
silence. The gateway has routes of its own for clients; this probe is the same for all services.
"""

import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

import structlog
from prometheus_client import CONTENT_TYPE_LATEST

from common.clock import Clock
from common.errors import StartupError
from common.metrics import exposition

# An event loop that has not turned for so long is stuck: a restart is better than waiting.
STUCK_S = 5.0
_CLIENT_TIMEOUT_S = 5.0

logger = structlog.get_logger(__name__)


class Health:
    """What the event loop's thread tells the probe's threads; single words, so no lock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._turned_at = clock.now()
        self.ready = False

    def beat(self, ready: bool) -> None:
        """Call this from the event loop every second or so."""
        self.ready = ready
        self._turned_at = self._clock.now()

    @property
    def live(self) -> bool:
        return self._clock.now() - self._turned_at < STUCK_S


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that says nothing or goes early; a traceback on stderr would be the default."""
        logger.debug("probe failed", client=client_address, exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_TIMEOUT_S  # a client that says nothing does not hold a thread

    def log_message(self, format: str, *args: Any) -> None:
        """Health checks every few seconds are not worth a line."""


class Probe:
    """The HTTP server; runs until `close`.

    Args:
        host, port: where to listen; port 0 = any free one, see `port`.

    Raises:
        StartupError: the port is taken.
    """

    def __init__(self, host: str, port: int, health: Health) -> None:
        try:
            self._server = make_server(host, port, _app(health), _Server, _Handler)
        except OSError as error:
            raise StartupError(
                f"cannot serve /health on {host}:{port}: {error.strerror}; "
                "choose another --probe-port"
            ) from None
        self.port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _app(health: Health) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        status, content_type, body = _answer(environ["PATH_INFO"], health)
        start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))])
        return [body]

    return app


def _answer(path: str, health: Health) -> tuple[str, str, bytes]:
    match path:
        case "/health" | "/health/live":
            return _yes_or_no(health.live, b"live", b"stuck")
        case "/health/ready":
            return _yes_or_no(health.live and health.ready, b"ready", b"not ready")
        case "/metrics":
            return "200 OK", CONTENT_TYPE_LATEST, exposition()
        case _:
            return "404 Not Found", "text/plain", b"not found\n"


def _yes_or_no(good: bool, yes: bytes, no: bytes) -> tuple[str, str, bytes]:
    if good:
        return "200 OK", "text/plain", yes + b"\n"
    return "503 Service Unavailable", "text/plain", no + b"\n"
