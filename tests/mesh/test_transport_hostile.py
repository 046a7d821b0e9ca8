"""Whatever arrives on a socket, honest peers do not notice."""

import asyncio
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import zmq

from common.codec import MAX_MESSAGE_BYTES, encode
from common.messages import (
    PROTOCOL_VERSION,
    CancelRequest,
    Goodbye,
    Heartbeat,
    Hello,
    Refused,
    StepPlan,
    WorkerJoin,
)
from common.peer_table import SAY_HELLO_FIRST
from common.transport import Inbox, Outbox
from tests.support.in_loop import in_loop
from tests.support.link_end import QUICK, End, a_peer, num_errors, wait_until

TOKENIZER = a_peer("tokenizer")
GATEWAY = a_peer("gateway")
STRANGER = Hello(PROTOCOL_VERSION, "gateway", "stranger", "s0")
PING = CancelRequest("r-1", "deadline")


class RawPeer:
    """A socket without manners."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket

    def send(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    async def answer(self) -> object:
        """The next answer, as its array."""
        await wait_until(lambda: self._socket.poll(0) != 0)
        return msgspec.msgpack.decode(self._socket.recv())


@contextmanager
def raw_peer(address: str) -> Iterator[RawPeer]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(address)
        yield RawPeer(socket)


def noise(seed: int, count: int) -> list[bytes]:
    draw = random.Random(seed)
    return [draw.randbytes(draw.choice((0, 1, 7, 100, 5000))) for _ in range(count)]


JOIN = WorkerJoin("m", "cpu", "reference", "float32", 9, 16, 99, 9, 9)

HOSTILE: dict[str, tuple[Sequence[bytes], str, str]] = {
    "nothing": ([encode(STRANGER), b""], "gateway", "malformed"),
    "truncated": ([encode(STRANGER), encode(PING)[:-1]], "gateway", "malformed"),
    "unknown tag": ([encode(STRANGER), msgspec.msgpack.encode([99])], "gateway", "invalid"),
    "wrong types": ([encode(STRANGER), msgspec.msgpack.encode([5, 1, 2])], "gateway", "invalid"),
    "deep nesting": ([encode(STRANGER), b"\x91" * 100_000], "gateway", "invalid"),
    "claims to be huge": ([encode(STRANGER), b"\xdd\xff\xff\xff\xff"], "gateway", "malformed"),
    "a worker's message": ([encode(STRANGER), encode(JOIN)], "gateway", "not_allowed"),
    "a plan": ([encode(STRANGER), encode(StepPlan(1, ()))], "gateway", "not_allowed"),
    "no Hello": ([encode(PING)], "unknown", "no_hello"),
    "noise without Hello": (noise(1, 50), "unknown", "malformed"),
    "noise after Hello": ([encode(STRANGER), *noise(2, 50)], "gateway", "malformed"),
    "after Goodbye": (
        [encode(STRANGER), encode(Goodbye("bye")), encode(PING)],
        "unknown",
        "no_hello",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
@in_loop()
async def test_a_bad_message_is_counted_and_dropped_and_others_go_on(
    tmp_path: Path, name: str
) -> None:
    messages, kind, reason = HOSTILE[name]
    num_before = num_errors(reason, kind)
    address = f"ipc://{tmp_path}/t"
    inbox = Inbox(address, TOKENIZER, QUICK)
    async with End(inbox) as below, End(Outbox(address, GATEWAY, QUICK)) as above:
        await above.up()
        with raw_peer(inbox.address) as stranger:
            for data in messages:
                stranger.send(data)
            await wait_until(lambda: num_errors(reason, kind) > num_before)
            assert above.link.send(TOKENIZER.instance_id, PING)
            assert (await below.message()).peer == GATEWAY


@in_loop()
async def test_several_frames_are_no_message(tmp_path: Path) -> None:
    num_before = num_errors("malformed")
    inbox = Inbox(f"ipc://{tmp_path}/t", TOKENIZER, QUICK)
    async with End(inbox) as below:
        with raw_peer(inbox.address) as stranger:
            stranger.send(b"", encode(STRANGER))
            await wait_until(lambda: num_errors("malformed") > num_before)
        assert not below.link.peers


@in_loop()
async def test_an_oversized_message_costs_its_sender_the_connection(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/t"
    inbox = Inbox(address, TOKENIZER, QUICK)
    async with End(inbox) as below, End(Outbox(address, GATEWAY, QUICK)) as above:
        await below.up()
        with raw_peer(inbox.address) as stranger:
            stranger.send(encode(STRANGER))
            assert (await below.up()).name == "stranger"
            stranger.send(b"\x00" * (MAX_MESSAGE_BYTES + 1))
            assert (await below.down()).reason == "connection lost"
        assert above.link.send(TOKENIZER.instance_id, PING)
        assert (await below.message()).peer == GATEWAY


@in_loop()
async def test_another_version_is_told_so(tmp_path: Path) -> None:
    inbox = Inbox(f"ipc://{tmp_path}/t", TOKENIZER, QUICK)
    async with End(inbox) as below:
        with raw_peer(inbox.address) as stranger:
            stranger.send(encode(Hello(99, "gateway", "stranger", "s0")))
            assert await stranger.answer() == [
                2,
                f"protocol version 99 and {PROTOCOL_VERSION} (tokenizer tokenizer-0) do not mix: "
                "run the same release everywhere",
            ]
        assert not below.link.peers


@in_loop()
async def test_a_kind_that_does_not_belong_is_told_so(tmp_path: Path) -> None:
    inbox = Inbox(f"ipc://{tmp_path}/t", TOKENIZER, QUICK)
    async with End(inbox):
        with raw_peer(inbox.address) as stranger:
            stranger.send(encode(Hello(PROTOCOL_VERSION, "worker", "stranger", "s0")))
            assert await stranger.answer() == [
                2,
                "a worker does not belong on this link: the tokenizer tokenizer-0 "
                "expects a gateway",
            ]


@in_loop()
async def test_who_does_not_say_hello_is_told_to(tmp_path: Path) -> None:
    inbox = Inbox(f"ipc://{tmp_path}/t", TOKENIZER, QUICK)
    async with End(inbox):
        with raw_peer(inbox.address) as stranger:
            stranger.send(encode(Heartbeat(ready=True, draining=False)))
            assert await stranger.answer() == [2, SAY_HELLO_FIRST]
            stranger.send(encode(STRANGER))
            assert await stranger.answer() == [
                1,
                PROTOCOL_VERSION,
                "tokenizer",
                "tokenizer-0",
                "t0",
            ]


@in_loop()
async def test_a_refused_outbox_has_no_peer_and_tries_again_later(tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        num_before = num_errors("refused")
        async with End(Outbox(f"tcp://127.0.0.1:{port}", GATEWAY, QUICK)) as above:
            await wait_until(lambda: router.poll(0) != 0)
            sender, hello = router.recv_multipart()
            assert msgspec.msgpack.decode(hello)[:3] == [1, PROTOCOL_VERSION, "gateway"]
            router.send_multipart([sender, encode(Refused("not you"))])
            await wait_until(lambda: num_errors("refused") > num_before)
            assert above.events == []


@in_loop()
async def test_raw_bytes_on_the_tcp_port_do_no_harm(tmp_path: Path) -> None:
    inbox = Inbox("tcp://127.0.0.1:0", TOKENIZER, QUICK)
    port = int(inbox.address.rpartition(":")[2])
    async with End(inbox) as below, End(Outbox(inbox.address, GATEWAY, QUICK)) as above:
        await above.up()
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100_000, b"", *noise(3, 20)):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data)
            writer.close()
        assert above.link.send(TOKENIZER.instance_id, PING)
        assert (await below.message()).peer == GATEWAY
        assert list(below.link.peers) == [GATEWAY.instance_id]


@in_loop()
async def test_strangers_that_impersonate_a_name_are_one_peer_at_a_time(tmp_path: Path) -> None:
    inbox = Inbox(f"ipc://{tmp_path}/t", TOKENIZER, QUICK)
    async with End(inbox) as below:
        for _ in range(20):
            with raw_peer(inbox.address) as stranger:
                instance_id = os.urandom(8).hex()
                stranger.send(encode(Hello(PROTOCOL_VERSION, "gateway", "twin", instance_id)))
                assert (await below.up()).instance_id == instance_id
                assert len(below.link.peers) <= 1
