"""The client against a server that sends canned bytes."""

import asyncio
import json

import pytest

from common.errors import ConfigError
from splitfuse.bench.sse_client import Endpoint, Reply, RequestFailed, complete
from tests.unit.splitfuse.fake_openai import fake_openai

EVENTS = (
    b'data: {"choices": [{"text": "Par"}]}\n\n'
    b'data: {"choices":[{"text":""}]}\n\n'
    b'data: {"choices":[{"text":"is \xc3\xa9"}],"usage":null,"error":null}\r\n\r\n'
    b": a comment\n\n"
    b'data: {"choices":[{"text":"\\"text\\": \\"\\""}]}\n\n'
    b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}\n\n'
    b"data: [DONE]\n\n"
)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"


def chunked(body: bytes, size: int) -> bytes:
    """`body` in HTTP chunks that care for neither events nor characters."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def ask(response: bytes, limit_s: float = 20.0) -> tuple[Reply, dict[str, object]]:
    """The client's reply to `response`, and the body that it had sent."""
    bodies: list[dict[str, object]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        bodies.append(json.loads(await reader.readexactly(length)))
        writer.write(response)
        await writer.drain()
        writer.close()

    async def both() -> Reply:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
            return await complete(endpoint, b'{"n": 1}', keep_text=True, limit_s=limit_s)

    return asyncio.run(both()), bodies[0]


@pytest.mark.parametrize(
    "response",
    [
        *(CHUNKED + chunked(EVENTS, size) for size in (1, 7, 1000)),
        UNTIL_CLOSED + EVENTS,
    ],
)
def test_a_stream_is_understood_however_it_is_cut(response: bytes) -> None:
    reply, body = ask(response)

    assert body == {"n": 1}
    assert reply.text == 'Paris é"text": ""'
    assert reply.num_tokens == (7, 3)
    assert len(reply.piece_at) == 3  # an event without text is no piece
    assert reply.sent_at <= reply.piece_at[0] <= reply.piece_at[-1]


def test_a_token_without_text_of_its_own_is_a_piece_if_the_server_names_it() -> None:
    events = (
        b'data: {"prompt_token_ids": [4], "choices":[{"text":"","token_ids":[]}]}\n\n'
        b'data: {"choices":[{"text":"","token_ids":[7]}]}\n\n'
        b'data: {"choices":[{"text":"\xc3\xa9","token_ids": [8]}]}\n\n'
        b"data: [DONE]\n\n"
    )

    reply, _ = ask(UNTIL_CLOSED + events)

    assert len(reply.piece_at) == 2


def test_a_server_that_counts_no_tokens_is_understood() -> None:
    reply, _ = ask(UNTIL_CLOSED + b'data: {"choices":[{"text":"a"}]}\n\ndata: [DONE]\n\n')

    assert reply.num_tokens is None
    assert reply.text == "a"


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (b"HTTP/1.1 422 No\r\nContent-Length: 9\r\n\r\nno\nthanks", "status 422: no\nthanks"),
        (CHUNKED + chunked(b'data: {"error": {"message": "late"}}\n\n', 99), "late"),
        (CHUNKED + chunked(b"data: [DONE]\n\n", 99), "without text"),
        (UNTIL_CLOSED + EVENTS[:90], "ended early"),
        (CHUNKED + chunked(EVENTS, 99)[:150], "ended early"),
        (
            UNTIL_CLOSED + b'data: {"text":"x","usage":{"total_tokens":3}}\n\ndata: [DONE]\n\n',
            "without token",
        ),
        (UNTIL_CLOSED + b'data: {"text":"x\n\ndata: [DONE]\n\n', "JSONDecodeError"),
        (b"what?\r\n\r\n", "HttpParser"),
        (b"", "status 0"),
    ],
)
def test_what_goes_wrong_is_said_in_the_servers_words(response: bytes, words: str) -> None:
    with pytest.raises(RequestFailed) as failed:
        ask(response)

    assert words in str(failed.value)


def test_a_server_that_says_nothing_more_has_failed_in_the_end() -> None:
    content = json.dumps({"prompt": "stuck here", "stream": True}).encode()
    with fake_openai() as server, pytest.raises(RequestFailed, match="TimeoutError"):
        asyncio.run(complete(Endpoint.of(server.url), content, limit_s=0.2))


def test_a_server_that_is_not_there_is_a_failure_of_the_request() -> None:
    with fake_openai() as server:
        endpoint = Endpoint.of(server.url)

    with pytest.raises(RequestFailed, match="ConnectionRefusedError"):
        asyncio.run(complete(endpoint, b"{}"))


def test_the_key_travels_in_the_head_and_is_not_shown() -> None:
    with fake_openai() as server:
        endpoint = Endpoint.of(server.url, api_key="secret")
        content = json.dumps({"prompt": "one two", "stream": True}).encode()
        asyncio.run(complete(endpoint, content))

    assert server.keys == ["Bearer secret"]
    assert "secret" not in repr(endpoint)


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://127.0.0.1:8000", Endpoint("127.0.0.1", 8000)),
        ("http://[::1]:8000/", Endpoint("::1", 8000)),
        ("http://host", Endpoint("host", 80)),
        ("https://host/api", Endpoint("host", 443, "/api/v1/completions", True)),
    ],
)
def test_a_url_says_where_to_ask(url: str, endpoint: Endpoint) -> None:
    assert Endpoint.of(url) == endpoint


@pytest.mark.parametrize("url", ["host:8000", "ftp://host", "http://", "http://host:x"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is not a URL"):
        Endpoint.of(url)
