"""One HTTP request for generation, from its body to its last byte.

The response's headers are held back until the first delta or a refusal, so a request that fails
before it begins has a true status code. After that, a failure is an `error` event before `[DONE]`.
"""

import asyncio
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import structlog
from starlette.types import Receive, Scope, Send

from common.clock import Clock
from common.config import GatewayConfig
from common.errors import RequestError
from common.log import Once
from common.messages import TokenizeRequest
from services.gateway import metrics, sse
from services.gateway.admission import check_admission
from services.gateway.answers import Answer, ChunkWriter, Heading, Piece, Tally, whole_answer
from services.gateway.http_errors import http_error
from services.gateway.http_io import (
    REQUEST_ID_HEADER,
    read_body,
    request_id_of,
    send_error,
    send_json,
    start_response,
    target_tbt_ms_of,
    watch_disconnect,
)
from services.gateway.mailbox import ClientGone, Mailbox
from services.gateway.mesh import Mesh
from services.gateway.openai_api import (
    Generation,
    Kind,
    parse_chat,
    parse_completion,
    tokenize_requests,
)

STATUS_CLIENT_GONE = 499  # in logs only: there is nobody to send it to

_ID_PREFIX = {"chat": "chatcmpl-", "completion": "cmpl-"}
_SSE_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # proxies must pass each event on at once
}

logger = structlog.get_logger(__name__)
_unknown_fields = Once()


@dataclass(slots=True)
class _Record:
    """One HTTP request as its log line tells it."""

    request_id: str
    completion_id: str
    started: float
    status: int = 500  # unless something else happens
    error_code: str | None = None
    ttft_s: float | None = None  # of streams
    tally: Tally | None = None  # once the body is understood
    user: str | None = None
    target_tbt_ms: float | None = None  # from its header


class GenerateEndpoint:
    """ASGI application of POST /v1/chat/completions or POST /v1/completions."""

    def __init__(self, kind: Kind, config: GatewayConfig, mesh: Mesh, clock: Clock) -> None:
        self._kind = kind
        self._parse = parse_chat if kind == "chat" else parse_completion
        self._config = config
        self._mesh = mesh
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        completion_id = _ID_PREFIX[self._kind] + secrets.token_hex(12)
        record = _Record(request_id_of(scope) or completion_id, completion_id, self._clock.now())
        try:
            record.target_tbt_ms = target_tbt_ms_of(scope)
            body = await read_body(scope, receive, self._config.max_body_bytes)
            await self._generate(self._parse(body), record, receive, send)
        except RequestError as error:
            record.status = error.code.http_status
            record.error_code = error.code
            await send_error(send, http_error(error), record.request_id)
        except ClientGone:
            record.status = STATUS_CLIENT_GONE
        finally:
            self._log(record)

    async def _generate(
        self, generation: Generation, record: _Record, receive: Receive, send: Send
    ) -> None:
        record.tally = Tally(len(generation.prompts), generation.n)
        record.user = generation.user
        requests = self._admit(generation, record)
        mailbox = self._mesh.submit(requests, generation.model, self._config.request_timeout_s)
        watcher = asyncio.create_task(watch_disconnect(receive, mailbox))
        try:
            respond = self._stream if generation.stream else self._answer
            await respond(generation, record, record.tally, mailbox, send)
        finally:
            watcher.cancel()
            self._mesh.release(requests, "client_disconnected")

    def _admit(self, generation: Generation, record: _Record) -> list[TokenizeRequest]:
        for name in generation.unknown_fields:
            if _unknown_fields.first(name[:100]):
                logger.warning("unknown request field ignored", field=name[:100])
        check_admission(
            self._mesh.state,
            generation.model,
            len(generation.prompts) * generation.n,
            self._config.max_num_queued_reqs,
            self._mesh.draining,
        )
        return tokenize_requests(
            generation,
            record.completion_id,
            secrets.randbits(64),
            record.target_tbt_ms,
            self._config.stream_interval,
        )

    async def _answer(
        self, generation: Generation, record: _Record, tally: Tally, mailbox: Mailbox, send: Send
    ) -> None:
        pieces = await mailbox.take_whole()
        record.status = 200
        answer = whole_answer(generation, _heading(generation, record), tally, pieces)
        await send_json(send, 200, answer, {REQUEST_ID_HEADER: record.request_id})

    async def _stream(
        self, generation: Generation, record: _Record, tally: Tally, mailbox: Mailbox, send: Send
    ) -> None:
        writer = ChunkWriter(generation, _heading(generation, record), tally)
        pieces = await mailbox.take()
        record.status = 200
        record.ttft_s = self._clock.now() - record.started
        await start_response(send, 200, _SSE_HEADERS | {REQUEST_ID_HEADER: record.request_id})
        with metrics.num_streams_open.track_inprogress():
            try:
                await _write(writer, pieces, send)
                while not mailbox.is_empty_for_good:
                    await _write(writer, await mailbox.take(), send)
                ending = _events(writer.last_chunks())
            except RequestError as error:
                record.error_code = error.code
                ending = sse.encode_event(http_error(error).body)
            await send({"type": "http.response.body", "body": ending + sse.DONE})

    def _log(self, record: _Record) -> None:
        fields: dict[str, object] = {
            "request_id": record.request_id,
            "completion_id": record.completion_id,
            "status": record.status,
            "total_s": round(self._clock.now() - record.started, 4),
        }
        if record.error_code is not None:
            fields["error"] = str(record.error_code)
        if record.ttft_s is not None:
            fields["ttft_s"] = round(record.ttft_s, 4)
        if record.tally is not None and record.tally.completion_tokens:
            fields["num_prompt_tokens"] = record.tally.prompt_tokens
            fields["num_completion_tokens"] = record.tally.completion_tokens
        if record.user is not None:
            fields["user"] = record.user[:100]
        logger.info(f"{self._kind} request", **fields)


def _heading(generation: Generation, record: _Record) -> Heading:
    return Heading(record.completion_id, int(time.time()), generation.model)


async def _write(writer: ChunkWriter, pieces: Sequence[Piece], send: Send) -> None:
    """Send all that is new as one write; waits while the client's buffers are full."""
    body = b"".join([_events(writer.chunks(piece)) for piece in pieces])
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})


def _events(chunks: Iterable[Answer]) -> bytes:
    return b"".join([sse.encode_event(chunk) for chunk in chunks])
