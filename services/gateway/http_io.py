"""ASGI by hand where a framework would stand in the way: bodies in, JSON out, request ids."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from common.errors import FailureCode, RequestError
from services.gateway import metrics
from services.gateway.http_errors import HttpError
from services.gateway.mailbox import ClientGone, Mailbox

REQUEST_ID_HEADER = "x-request-id"
TARGET_TBT_HEADER = "x-target-tbt-ms"
MAX_TARGET_MS = 3_600_000.0
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")

_encode = msgspec.json.Encoder().encode


def request_id_of(scope: Scope) -> str | None:
    """What the client calls its request; None if it says nothing or nothing printable."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return value.decode() if _REQUEST_ID.fullmatch(value) else None
    return None


def target_tbt_ms_of(scope: Scope) -> float | None:
    """Time between tokens that the client asks for; None if it says nothing.

    Raises:
        RequestError: INVALID_REQUEST, it is no number of milliseconds in (0, MAX_TARGET_MS].
    """
    for name, value in scope["headers"]:
        if name == TARGET_TBT_HEADER.encode():
            text = value[:32].decode("latin-1")
            try:
                target_ms = float(text)
            except ValueError:
                target_ms = 0.0
            if 0 < target_ms <= MAX_TARGET_MS:
                return target_ms
            raise RequestError(
                FailureCode.INVALID_REQUEST,
                f"the header {TARGET_TBT_HEADER} is {text!r}; it must be a number of milliseconds "
                f"greater than 0 and at most {MAX_TARGET_MS:.0f}",
                TARGET_TBT_HEADER,
            )
    return None


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """The whole body; never holds more than `max_bytes` and one network read of it.

    Raises:
        RequestError: REQUEST_TOO_LARGE, by the announced length or by what has come in so far.
        ClientGone: the connection closed before the body was complete.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value[:20]) > max_bytes:
            raise _too_large(f"is {value[:20].decode()} bytes long", max_bytes)
    parts: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise _too_large(f"is longer than {num_bytes - 1} bytes", max_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(found: str, max_bytes: int) -> RequestError:
    return RequestError(
        FailureCode.REQUEST_TOO_LARGE, f"the body {found}; the limit is {max_bytes} bytes"
    )


async def watch_disconnect(receive: Receive, mailbox: Mailbox) -> None:
    """Tell the mailbox when the client closes the connection; nothing else comes after a body."""
    while (await receive())["type"] != "http.disconnect":
        pass
    mailbox.leave()


async def start_response(send: Send, status: int, headers: Mapping[str, str]) -> None:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def send_json(
    send: Send, status: int, payload: Any, headers: Mapping[str, str] | None = None
) -> None:
    """A complete JSON response."""
    body = _encode(payload)
    own = {"content-type": "application/json", "content-length": str(len(body))}
    await start_response(send, status, own | dict(headers or {}))
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: HttpError, request_id: str | None) -> None:
    """A complete error response, counted."""
    metrics.http_errors.labels(status=error.status).inc()
    named = {} if request_id is None else {REQUEST_ID_HEADER: request_id}
    await send_json(send, error.status, error.body, {**error.headers, **named})
