"""A client that takes as little of the machine as it can: one connection, one streamed completion.

Servers may share their cores with it, so it has no pool, no streams, no retries, and decodes
nothing while text comes.
"""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

import httptools

from common.errors import ConfigError
from splitfuse.bench.sse_pieces import PieceReader

OK = 200
MAX_WORDS = 500  # characters of a refusal that are shown
DEFAULT_LIMIT_S = 900.0  # of one request
COMPLETIONS = "/v1/completions"


class RequestFailed(Exception):
    """The server refused, failed on the way, or said too little; the message has its words."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where completions are asked for."""

    host: str
    port: int
    path: str = COMPLETIONS
    is_tls: bool = False
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str, api_key: str | None = None) -> Self:
        """The endpoint of a server at e.g. "http://127.0.0.1:8000".

        Raises:
            ConfigError: it is no such URL.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{url!r} is not a URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is not a URL: write http://HOST:PORT")
        is_tls = parts.scheme == "https"
        path = parts.path.rstrip("/") + COMPLETIONS
        return cls(parts.hostname, port or (443 if is_tls else 80), path, is_tls, api_key)

    def request(self, content: bytes) -> bytes:
        """The HTTP request that posts JSON."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        key = f"Authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {host}:{self.port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\n{key}Content-Length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content


@dataclass(slots=True)
class Reply:
    """What a client saw of one completion. Times are monotonic seconds."""

    sent_at: float
    piece_at: list[float]  #: when each event with text or token ids came; one at least
    #: (prompt, output) as the server counts them; None if it does not say
    num_tokens: tuple[int, int] | None
    text: str  #: empty unless it was to be kept


async def complete(
    endpoint: Endpoint,
    content: bytes,
    *,
    limit_s: float = DEFAULT_LIMIT_S,
    keep_text: bool = False,
) -> Reply:
    """Ask for a streamed completion and take the time of each piece of text.

    Args:
        content: the request's body; asks for one choice, streamed.
        limit_s: seconds until it has failed.

    Raises:
        RequestFailed: it was refused, broke off, took too long or had no text.
    """
    stream = _Stream(endpoint.request(content), PieceReader(keep_text=keep_text))
    sent_at = time.monotonic()
    try:
        async with asyncio.timeout(limit_s):
            await stream.exchange(endpoint)
        return stream.reply(sent_at)
    except (OSError, TimeoutError, httptools.HttpParserError, ValueError) as error:
        raise RequestFailed(f"{type(error).__name__}: {error}") from error


class _Stream(asyncio.Protocol):
    """One exchange; httptools calls the `on_` methods."""

    def __init__(self, request: bytes, pieces: PieceReader) -> None:
        self._request = request
        self._pieces = pieces
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self._is_complete = False  # as HTTP has it; some servers just close the connection
        self._refusal = b""
        self._now = 0.0
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def exchange(self, endpoint: Endpoint) -> None:
        """Send the request and read the answer to its end, or to the end of the connection.

        Raises:
            OSError, HttpParserError: there is no connection, or it speaks no HTTP.
        """
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: self, endpoint.host, endpoint.port, ssl=endpoint.is_tls or None
        )
        try:
            transport.write(self._request)
            await self._over
        finally:
            transport.abort()

    def reply(self, sent_at: float) -> Reply:
        """What came; the exchange is over.

        Raises:
            RequestFailed: it was no complete answer.
            ValueError: an event was not what it should be.
        """
        pieces = self._pieces
        if self._status != OK:
            words = self._refusal.decode(errors="replace")[:MAX_WORDS]
            raise RequestFailed(f"status {self._status}: {words}")
        if pieces.error is not None:
            raise RequestFailed(pieces.error.decode(errors="replace")[:MAX_WORDS])
        if not (pieces.is_done or self._is_complete):
            raise RequestFailed("the stream ended early")
        if not pieces.piece_at:
            raise RequestFailed("the stream ended without text")
        return Reply(sent_at, pieces.piece_at, pieces.usage(), pieces.text())

    def data_received(self, data: bytes) -> None:
        self._now = time.monotonic()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._status == OK:
            self._pieces.feed(body, self._now)
        else:
            self._refusal += body

    def on_message_complete(self) -> None:
        self._is_complete = True
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self._over.done():
            return
        if error is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(error)
