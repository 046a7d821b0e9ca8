"""The client against a server that sends canned bytes."""

import asyncio
import json

import pytest

from benchmarks.peers.sse_client import Answer, RequestFailed, complete

EVENTS = (
    b'data: {"choices": [{"text": "Par"}]}\n\n'
    b'data: {"choices": [{"text": ""}]}\n\n'
    b'data: {"choices": [{"text": "is \xc3\xa9"}], "usage": null}\n\n'
    b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}\n\n'
    b"data: [DONE]\n\n"
)
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(body: bytes, size: int) -> bytes:
    """`body` in HTTP chunks that care for neither events nor characters."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def ask(response: bytes) -> tuple[Answer, dict[str, object]]:
    """The client's answer to `response`, and the body that it had sent."""
    bodies: list[dict[str, object]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        bodies.append(json.loads(await reader.readexactly(length)))
        writer.write(response)
        await writer.drain()
        writer.close()

    async def both() -> Answer:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            return await complete(server.sockets[0].getsockname()[1], {"prompt": [1, 2]})

    return asyncio.run(both()), bodies[0]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_stream_is_understood_however_it_is_cut(size: int) -> None:
    answer, body = ask(STREAM + chunked(EVENTS, size))

    assert body == {"prompt": [1, 2]}
    assert (answer.text, answer.prompt_tokens, answer.output_tokens) == ("Paris é", 7, 3)
    assert len(answer.text_at) == 2  # an event without text is no piece
    assert answer.began <= answer.text_at[0] <= answer.ended


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (b"HTTP/1.1 422 No\r\nContent-Length: 9\r\n\r\nno\nthanks", "status 422: no\nthanks"),
        (STREAM + chunked(b'data: {"error": {"message": "late"}}\n\n', 99), "late"),
        (STREAM + chunked(EVENTS[:40], 99), "without text or without usage"),
        (STREAM + chunked(b"data: {\n\n", 99), "JSONDecodeError"),
        (b"what?\r\n\r\n", "HttpParser"),
        (b"", "status 0"),
    ],
)
def test_what_goes_wrong_is_said_in_the_servers_words(response: bytes, words: str) -> None:
    with pytest.raises(RequestFailed) as failed:
        ask(response)

    assert words in str(failed.value)
