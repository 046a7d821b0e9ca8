"""Links between processes, of which one is killed, stopped or restarted."""

import asyncio
import signal
import time
from pathlib import Path

import pytest

from common.link import PeerUp, Received
from common.messages import CancelRequest
from common.transport import Inbox, Outbox
from tests.support.in_loop import in_loop
from tests.support.link_end import QUICK, End, EndProcess, a_peer, num_errors, options, wait_until

pytestmark = pytest.mark.mesh

TOKENIZER = a_peer("tokenizer")
GATEWAY = a_peer("gateway")
# Silence does not tell within the time of a test: only the connection's end does.
USUAL = options(1.0, 60.0)


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
@in_loop()
async def test_a_killed_downstream_is_seen_within_two_seconds(tmp_path: Path, scheme: str) -> None:
    bind = f"ipc://{tmp_path}/t" if scheme == "ipc" else "tcp://127.0.0.1:0"
    async with await EndProcess.start("inbox", bind, TOKENIZER, 1.0, 60.0) as victim:
        address = await victim.line("open")
        address = f"ipc://{tmp_path}/t" if scheme == "ipc" else address
        async with End(Outbox(address, GATEWAY, USUAL)) as above:
            await above.up()
            victim.signal(signal.SIGKILL)
            killed_at = time.monotonic()
            assert (await above.down()).reason == "connection lost"
            assert time.monotonic() - killed_at < 2.0


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
@in_loop()
async def test_a_killed_upstream_is_seen_within_two_seconds(tmp_path: Path, scheme: str) -> None:
    inbox = Inbox(
        f"ipc://{tmp_path}/t" if scheme == "ipc" else "tcp://127.0.0.1:0", TOKENIZER, USUAL
    )
    address = f"ipc://{tmp_path}/t" if scheme == "ipc" else inbox.address
    async with (
        End(inbox) as below,
        await EndProcess.start("outbox", address, GATEWAY, 1.0, 60.0) as victim,
    ):
        await below.up()
        victim.signal(signal.SIGKILL)
        killed_at = time.monotonic()
        assert (await below.down()).reason == "connection lost"
        assert time.monotonic() - killed_at < 2.0


@in_loop()
async def test_what_a_killed_peer_had_sent_comes_before_its_loss(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/t"
    inbox = Inbox(address, TOKENIZER, USUAL)
    num_strays = num_errors("no_hello")
    async with await EndProcess.start("outbox", address, GATEWAY, 1.0, 60.0, flood=8300) as victim:
        await victim.line("flooded")
        await wait_until(lambda: not inbox._may_read)  # the rest is still on its way
        victim.signal(signal.SIGKILL)
    # More than is read ahead for a service that does not receive: the end lies behind the rest.
    await asyncio.sleep(1.5)
    assert GATEWAY.instance_id in inbox.peers
    async with End(inbox) as below:
        await below.down()
        numbers = [
            event.message.request_id
            for event in below.events
            if isinstance(event, Received) and isinstance(event.message, CancelRequest)
        ]
        assert len(numbers) >= 4096
        assert numbers == [str(number) for number in range(len(numbers))]
        assert num_errors("no_hello") == num_strays


@in_loop()
async def test_a_killed_process_is_replaced_by_its_successor(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/t"
    async with End(Outbox(address, GATEWAY, USUAL)) as above:
        async with await EndProcess.start("inbox", address, TOKENIZER, 1.0, 60.0) as victim:
            await above.up()
            victim.signal(signal.SIGKILL)
            await above.down()
        successor = a_peer("tokenizer", 1)
        async with await EndProcess.start("inbox", address, successor, 1.0, 60.0):
            assert await above.up() == successor
            message = CancelRequest("r-1", "deadline")
            assert above.link.send(successor.instance_id, message)


@in_loop()
async def test_a_stopped_downstream_is_lost_and_comes_back_when_it_goes_on(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/t"
    async with (
        await EndProcess.start("inbox", address, TOKENIZER) as sleeper,
        End(Outbox(address, GATEWAY, QUICK)) as above,
    ):
        await above.up()
        await sleeper.line("PeerUp")

        sleeper.signal(signal.SIGSTOP)
        assert "silent" in (await above.down()).reason
        sleeper.signal(signal.SIGCONT)

        assert await above.up() == TOKENIZER
        await sleeper.line("PeerDown")
        await sleeper.line("PeerUp")
        assert above.link.send(TOKENIZER.instance_id, CancelRequest("r-1", "deadline"))
        await sleeper.line("Received")


@in_loop()
async def test_a_stopped_upstream_is_lost_and_comes_back_when_it_goes_on(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/t"
    async with (
        End(Inbox(address, TOKENIZER, QUICK)) as below,
        await EndProcess.start("outbox", address, GATEWAY) as sleeper,
    ):
        await below.up()
        await sleeper.line("PeerUp")

        sleeper.signal(signal.SIGSTOP)
        assert "silent" in (await below.down()).reason
        sleeper.signal(signal.SIGCONT)

        assert await below.up() == GATEWAY
        await sleeper.line("PeerDown")  # it learns that it had been given up
        await sleeper.line("PeerUp")


@in_loop()
async def test_a_process_that_was_stopped_does_not_give_up_the_others(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/t"
    async with (
        # Above does not mind the silence; below would give it up after a second.
        End(Outbox(address, GATEWAY, options(0.1, 60.0))) as above,
        await EndProcess.start("inbox", address, TOKENIZER) as sleeper,
    ):
        await above.up()
        await sleeper.line("PeerUp")

        sleeper.signal(signal.SIGSTOP)
        await asyncio.sleep(1.5)  # its silence limit is 0.8 s
        sleeper.signal(signal.SIGCONT)

        assert above.link.send(TOKENIZER.instance_id, CancelRequest("r-1", "deadline"))
        assert await sleeper.line("") == f"PeerChanged {GATEWAY.instance_id}"
        assert await sleeper.line("") == f"Received {GATEWAY.instance_id}"
        assert len([event for event in above.events if isinstance(event, PeerUp)]) == 1
