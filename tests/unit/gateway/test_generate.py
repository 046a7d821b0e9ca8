import asyncio
import json
import socket
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client import REGISTRY

from common.errors import FailureCode, ProtocolError
from common.messages import (
    AnyMessage,
    CancelRequest,
    LiveRequests,
    RequestFailed,
    TextDeltas,
    TokenizeRequest,
)
from common.token_ids import unpack_ids
from tests.support.memory_link import MemoryLink
from tests.unit.gateway.playground import (
    DEADLINE_S,
    Playground,
    a_delta,
    playground,
)

pytestmark = pytest.mark.anyio

COMPLETION = {"model": "tiny", "prompt": "hi"}
STREAM = {**COMPLETION, "stream": True}
CHAT_STREAM = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
}


def post(gateway: Playground, body: dict[str, Any], **kwargs: Any) -> asyncio.Task[httpx.Response]:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    return asyncio.create_task(gateway.client.post(path, json=body, **kwargs))


def events(response: httpx.Response) -> list[Any]:
    """The JSON of all events; the stream must end with [DONE]."""
    assert response.text.endswith("\n\n")
    data = [part.removeprefix("data: ") for part in response.text.split("\n\n")[:-1]]
    assert data[-1] == "[DONE]"
    return [json.loads(each) for each in data[:-1]]


class Reader:
    """Reads one SSE response as it comes; `next` waits for the text of the next event."""

    def __init__(self, gateway: Playground, body: dict[str, Any]) -> None:
        self._texts: asyncio.Queue[str] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read(gateway, body))

    async def _read(self, gateway: Playground, body: dict[str, Any]) -> None:
        async with gateway.client.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                data = line.removeprefix("data: ")
                if data.startswith("{"):
                    self._texts.put_nowait(json.loads(data)["choices"][0]["text"])

    async def next(self) -> str:
        async with asyncio.timeout(DEADLINE_S):
            return await self._texts.get()

    async def end(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self._reading

    def leave(self) -> None:
        self._reading.cancel()


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_completion_comes_as_one_object() -> None:
    async with playground() as gateway:
        await gateway.tokenizer_up()
        asked = post(gateway, COMPLETION)
        (request,) = await gateway.requests()
        gateway.answer(request, "Hel", "lo")

        body = (await asked).json()

        assert body["id"].startswith("cmpl-")
        assert body["object"] == "text_completion"
        assert body["model"] == "tiny"
        (choice,) = body["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("Hello", "stop")
        assert body["usage"] == {
            "prompt_tokens": 5,
            "completion_tokens": 2,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 0},
        }


async def test_a_chat_stream_opens_with_the_role_and_closes_with_usage() -> None:
    async with playground() as gateway:
        await gateway.tokenizer_up()
        asked = post(gateway, CHAT_STREAM | {"stream_options": {"include_usage": True}})
        (request,) = await gateway.requests()
        gateway.answer(request, "Hi", " you", "")

        response = await asked
        got = events(response)

        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(e["choices"][0]["delta"].get("content", "") for e in got[:-1])
        assert text == "Hi you"
        assert [e["choices"][0]["finish_reason"] for e in got[:-1]][-1] == "stop"
        assert got[-1]["choices"] == []
        assert got[-1]["usage"]["total_tokens"] == 8
        assert all(e["usage"] is None for e in got[:-1])
        assert len({(e["id"], e["created"], e["model"], e["object"]) for e in got}) == 1


async def test_choices_of_a_stream_are_told_apart_by_index() -> None:
    async with playground() as gateway:
        await gateway.tokenizer_up()
        asked = post(gateway, STREAM | {"n": 3})
        requests = await gateway.requests(3)
        for word in ("x", "y"):
            for index, request in enumerate(requests):
                last = word == "y"
                delta = a_delta(
                    request.request_id, int(last), f"{word}{index}", finish="stop" if last else None
                )
                gateway.deliver(delta)

        got = events(await asked)

        for index in range(3):
            mine = [c for e in got for c in e["choices"] if c["index"] == index]
            assert "".join(choice["text"] for choice in mine) == f"x{index}y{index}"
            assert mine[-1]["finish_reason"] == "stop"


async def test_each_token_reaches_a_reading_client_at_once() -> None:
    async with playground() as gateway:
        await gateway.tokenizer_up()
        reader = Reader(gateway, STREAM)
        (request,) = await gateway.requests()
        for index, word in enumerate(["a", "b", "c"]):
            gateway.deliver(a_delta(request.request_id, index, word))
            assert await reader.next() == word
        gateway.deliver(a_delta(request.request_id, 3, "d", finish="stop"))

        assert await reader.next() == "d"
        await reader.end()


async def test_the_client_gets_its_request_id_back() -> None:
    async with playground() as gateway:
        refused = await post(gateway, COMPLETION, headers={"x-request-id": "abc-1"})
        await gateway.tokenizer_up()
        asked = post(gateway, STREAM, headers={"x-request-id": "abc-2"})
        (request,) = await gateway.requests()
        gateway.answer(request, "a")
        odd = post(gateway, COMPLETION, headers={"x-request-id": "two words"})
        gateway.answer((await gateway.requests(2))[1], "a")

        assert refused.headers["x-request-id"] == "abc-1"
        assert (await asked).headers["x-request-id"] == "abc-2"
        assert (await odd).headers["x-request-id"].startswith("cmpl-")


async def test_a_header_asks_for_a_time_between_tokens() -> None:
    async with playground() as gateway:
        await gateway.tokenizer_up()
        asked = post(gateway, COMPLETION, headers={"x-target-tbt-ms": "37.5"})
        (request,) = await gateway.requests()
        gateway.answer(request, "a")

        assert (await asked).status_code == 200
        assert request.target_tbt_ms == 37.5


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf", "1e9", ""])
async def test_a_time_between_tokens_that_cannot_be_is_refused(value: str) -> None:
    async with playground() as gateway:
        await gateway.tokenizer_up()
        response = await post(gateway, COMPLETION, headers={"x-target-tbt-ms": value})

    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "x-target-tbt-ms")
    assert f"is {value!r}" in error["message"]
    assert "at most 3600000" in error["message"]


# ── failures ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("body", [COMPLETION, STREAM, CHAT_STREAM])
async def test_a_failure_before_the_first_token_has_a_true_status(body: dict[str, Any]) -> None:
    cases = [
        (FailureCode.CONTEXT_LENGTH_EXCEEDED, 400, "invalid_request_error"),
        (FailureCode.KV_CACHE_EXCEEDED, 400, "invalid_request_error"),
        (FailureCode.OVERLOADED, 503, "service_unavailable"),
        (FailureCode.UNAVAILABLE, 503, "service_unavailable"),
        (FailureCode.INTERNAL, 500, "server_error"),
    ]
    async with playground() as gateway:
        peer = await gateway.tokenizer_up()
        for number, (code, status, kind) in enumerate(cases, start=1):
            asked = post(gateway, body)
            request = (await gateway.requests(number))[-1]
            gateway.link.deliver(peer, RequestFailed(request.request_id, code, "because", "n"))

            response = await asked

            assert response.status_code == status
            assert response.json()["error"] == {
                "message": "because",
                "type": kind,
                "param": "n",
                "code": code.value,
            }
            assert ("retry-after" in response.headers) == (status == 503)


async def test_a_failure_in_mid_stream_is_an_event_before_done() -> None:
    async with playground() as gateway:
        peer = await gateway.tokenizer_up()
        asked = post(gateway, STREAM)
        (request,) = await gateway.requests()
        gateway.deliver(a_delta(request.request_id, 0, "one"))
        await gateway.until(lambda: _num_streams_open() == 1)
        gateway.link.deliver(peer, RequestFailed(request.request_id, "internal_error", "broken"))

        response = await asked
        got = events(response)

        assert response.status_code == 200
        assert got[0]["choices"][0]["text"] == "one"
        assert got[-1]["error"]["code"] == "internal_error"


async def test_one_failed_choice_fails_the_answer_and_cancels_the_others() -> None:
    async with playground() as gateway:
        peer = await gateway.tokenizer_up()
        asked = post(gateway, COMPLETION | {"n": 3})
        requests = await gateway.requests(3)
        failed = RequestFailed(requests[1].request_id, "internal_error", "broken")
        gateway.link.deliver(peer, failed)

        assert (await asked).status_code == 500
        await gateway.idle()
        cancelled = {cancel.request_id for cancel in gateway.sent(CancelRequest)}
        assert cancelled == {requests[0].request_id, requests[2].request_id}


async def test_a_full_link_is_a_503() -> None:
    async with playground() as gateway:
        peer = await gateway.tokenizer_up()
        gateway.link.full.add(peer.instance_id)

        response = await post(gateway, COMPLETION)

        assert response.status_code == 503
        assert response.json()["error"]["code"] == "overloaded"


class SmallLink(MemoryLink):
    """A link whose messages have a largest size, as on the wire."""

    def send(self, instance_id: str, message: AnyMessage) -> bool:
        if isinstance(message, TokenizeRequest):
            raise ProtocolError("TokenizeRequest of 70 bytes exceeds 60", reason="oversized")
        return super().send(instance_id, message)


async def test_a_prompt_that_no_message_can_hold_is_a_413() -> None:
    async with playground(SmallLink()) as gateway:
        await gateway.tokenizer_up()

        response = await post(gateway, COMPLETION | {"n": 4})

        assert response.status_code == 413
        assert "exceeds 60" in response.json()["error"]["message"]
        await gateway.idle()


async def test_a_request_that_takes_too_long_is_a_504_and_is_cancelled() -> None:
    async with playground(request_timeout_s=0.05) as gateway:
        await gateway.tokenizer_up()

        response = await post(gateway, STREAM)

        assert response.status_code == 504
        assert response.json()["error"]["code"] == "timeout"
        assert "0.05 s" in response.json()["error"]["message"]
        (cancel,) = gateway.sent(CancelRequest)
        assert cancel.reason == "deadline"


async def test_more_sequences_than_the_limit_are_refused_until_some_end() -> None:
    async with playground(max_num_queued_reqs=4) as gateway:
        await gateway.tokenizer_up()
        running = post(gateway, COMPLETION | {"n": 3})
        requests = await gateway.requests(3)

        refused = await post(gateway, COMPLETION | {"n": 2})
        never = await post(gateway, COMPLETION | {"n": 5})

        assert (refused.status_code, never.status_code) == (503, 400)
        assert refused.headers["retry-after"] == "1"
        assert "limit of 4" in refused.json()["error"]["message"]
        for request in requests:
            gateway.answer(request, "a")
        assert (await running).status_code == 200
        accepted = post(gateway, COMPLETION | {"n": 2})
        for request in (await gateway.requests(5))[3:]:
            gateway.answer(request, "a")
        assert (await accepted).status_code == 200


# ── clients leave ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("body", [COMPLETION, STREAM])
async def test_a_client_that_leaves_before_the_first_token_cancels_its_work(
    body: dict[str, Any],
) -> None:
    async with playground() as gateway:
        await gateway.tokenizer_up()
        asked = post(gateway, body | {"n": 2})
        requests = await gateway.requests(2)

        asked.cancel()

        await gateway.idle()
        cancels = gateway.sent(CancelRequest)
        assert {cancel.request_id for cancel in cancels} == {r.request_id for r in requests}
        assert {cancel.reason for cancel in cancels} == {"client_disconnected"}
        assert gateway.service.mesh.state.num_requests == 0


async def test_a_client_that_leaves_in_mid_stream_cancels_its_work() -> None:
    async with playground() as gateway:
        await gateway.tokenizer_up()
        reader = Reader(gateway, STREAM)
        (request,) = await gateway.requests()
        gateway.deliver(a_delta(request.request_id, 0, "one"))
        assert await reader.next() == "one"

        reader.leave()

        await gateway.idle()
        (cancel,) = gateway.sent(CancelRequest)
        assert cancel.request_id == request.request_id


async def test_a_finished_answer_is_not_cancelled() -> None:
    async with playground() as gateway:
        await gateway.tokenizer_up()
        asked = post(gateway, STREAM)
        (request,) = await gateway.requests()
        gateway.answer(request, "a", "b")
        await asked

        await gateway.idle()
        assert gateway.sent(CancelRequest) == []


# ── tokenizers die ───────────────────────────────────────────────────────────────────────────────


async def test_a_stream_goes_on_at_another_tokenizer_without_loss_or_repeat() -> None:
    async with playground() as gateway:
        first = await gateway.tokenizer_up(0)
        asked = post(gateway, STREAM | {"stream_options": {"include_usage": True}})
        (request,) = await gateway.requests()
        gateway.deliver(a_delta(request.request_id, 0, "one ", [11]))
        gateway.deliver(a_delta(request.request_id, 1, "two ", [12, 13]))
        await gateway.tokenizer_up(1)
        late = TextDeltas((a_delta(request.request_id, 3, "late", [99]),))
        gateway.link.peer_down(first)
        (_, resent) = await gateway.requests(2)
        gateway.link.deliver(first, late)
        gateway.deliver(a_delta(request.request_id, 1, "two ", [12, 13]), by=1)  # a repeat
        gateway.deliver(a_delta(request.request_id, 3, "three", [14], finish="stop"), by=1)

        got = events(await asked)

        assert list(unpack_ids(resent.resume_output_ids)) == [11, 12, 13]
        assert resent.sampling == request.sampling
        assert "".join(c["text"] for e in got for c in e["choices"]) == "one two three"
        assert got[-1]["usage"]["completion_tokens"] == 4


async def test_a_request_waits_for_a_tokenizer_that_restarts() -> None:
    async with playground() as gateway:
        first = await gateway.tokenizer_up(0)
        gateway.link.peer_down(first)
        await gateway.until(lambda: gateway.service.mesh.state.num_tokenizers == 0)
        asked = post(gateway, COMPLETION)
        await gateway.until(lambda: gateway.service.mesh.state.num_requests == 1)

        await gateway.tokenizer_up(1)
        (request,) = await gateway.requests(to=1)
        gateway.deliver(a_delta(request.request_id, 0, "back", finish="stop"), by=1)

        assert (await asked).json()["choices"][0]["text"] == "back"


async def test_absurd_counts_of_a_peer_do_no_harm() -> None:
    async with playground() as gateway:
        await gateway.tokenizer_up()
        asked = post(gateway, COMPLETION)
        (request,) = await gateway.requests()
        odd = msgspec.structs.replace(
            a_delta(request.request_id, 0, "a", finish="stop"),
            num_prompt_tokens=-5,
            num_cached_tokens=-1,
            token_ids=b"\x01\x02\x03",
        )
        gateway.deliver(a_delta(request.request_id, -1, "b"), a_delta("", 0, "c"), odd)

        assert (await asked).json()["choices"][0]["text"] == "a"
        assert (await gateway.client.get("/health")).status_code == 200


async def test_tokenizers_are_told_what_is_wanted_of_them() -> None:
    async with playground(audit_period_s=0.05) as gateway:
        await gateway.tokenizer_up()
        asked = post(gateway, COMPLETION)
        (request,) = await gateway.requests()

        wanted = LiveRequests((request.request_id,))
        await gateway.until(lambda: wanted in gateway.sent(LiveRequests))
        gateway.answer(request, "a")
        await asked


# ── slow clients ─────────────────────────────────────────────────────────────────────────────────


async def test_a_client_that_does_not_read_delays_nobody_and_loses_nothing() -> None:
    flood = "#" * 8_000_000  # more than buffers hold: the server's grow to 4 MiB
    async with playground() as gateway:
        await gateway.tokenizer_up()
        host, port = gateway.url.removeprefix("http://").split(":")
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # does not grow then
            slow.connect((host, int(port)))
            slow.setblocking(False)
            _send_request(slow, STREAM)
            (request,) = await gateway.requests()
            gateway.deliver(a_delta(request.request_id, 0, flood))
            quick = post(gateway, STREAM)
            (_, other) = await gateway.requests(2)
            gateway.answer(other, "quick")
            assert (await quick).status_code == 200

            for index in range(1, 500):
                gateway.deliver(a_delta(request.request_id, index, "#"))
                await asyncio.sleep(0)  # a client that reads would now get an event for each
            assert not gateway.service.is_idle
            gateway.deliver(a_delta(request.request_id, 500, "END", finish="stop"))
            received = await _read_all(slow)

        assert received.count(b"#") == len(flood) + 499
        assert b"END" in received
        assert received.count(b"data: ") < 10


def _send_request(connection: socket.socket, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: test\r\nconnection: close\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)


async def _read_all(connection: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    received = b""
    async with asyncio.timeout(DEADLINE_S):
        while part := await loop.sock_recv(connection, 1 << 20):
            received += part
    return received


# ── the end ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_draining_gateway_finishes_streams_and_takes_none() -> None:
    async with playground() as gateway:
        await gateway.tokenizer_up()
        asked = post(gateway, STREAM)
        (request,) = await gateway.requests()
        gateway.deliver(a_delta(request.request_id, 0, "one "))
        await gateway.until(lambda: _num_streams_open() == 1)

        gateway.service.drain()
        refused = await post(gateway, COMPLETION)
        readiness = await gateway.client.get("/health/ready")
        gateway.deliver(a_delta(request.request_id, 1, "two", finish="stop"))

        assert refused.status_code == 503
        assert "shutting down" in refused.json()["error"]["message"]
        assert readiness.status_code == 503
        assert readiness.json()["layers"]["gateway"] == "draining"
        assert gateway.link.status is not None
        assert gateway.link.status.draining
        text = "".join(c["text"] for e in events(await asked) for c in e["choices"])
        assert text == "one two"
        await gateway.idle()


async def test_streams_that_outlive_the_drain_end_with_an_error_and_are_cancelled() -> None:
    async with playground() as gateway:
        await gateway.tokenizer_up()
        asked = post(gateway, STREAM)
        (request,) = await gateway.requests()
        gateway.deliver(a_delta(request.request_id, 0, "one"))
        await gateway.until(lambda: _num_streams_open() == 1)

        await gateway.service.stop("test")

        got = events(await asked)
        assert got[-1]["error"]["code"] == "unavailable"
        (cancel,) = gateway.sent(CancelRequest)
        assert cancel.reason == "shutdown"
        assert gateway.link.closed == "test"


def _num_streams_open() -> float | None:
    return REGISTRY.get_sample_value("splitfuse:num_streams_open")
