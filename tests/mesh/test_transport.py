"""Two link ends on real sockets, in one process."""

import asyncio
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.curve import generate_keys
from common.discovery import socket_path
from common.errors import ConfigError, StartupError
from common.link import PeerChanged, PeerDown, PeerUp, Received
from common.messages import (
    AnyMessage,
    CancelRequest,
    Heartbeat,
    LiveRequests,
    TextDelta,
    TextDeltas,
    UnknownRequests,
)
from common.transport import Inbox, Outbox
from tests.support.in_loop import in_loop
from tests.support.link_end import QUICK, RARE, End, a_peer, num_errors, options, wait_until

TOKENIZER = a_peer("tokenizer")
GATEWAY = a_peer("gateway")


def numbered(number: int) -> CancelRequest:
    return CancelRequest(str(number), "deadline")


async def fill(link: Inbox | Outbox, instance_id: str, message: AnyMessage) -> int:
    """Send until nothing more is taken; returns how many were."""
    num_sent = 0
    while link.send(instance_id, message):
        num_sent += 1
        await asyncio.sleep(0)
    return num_sent


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def addresses(tmp_path: Path) -> dict[str, str]:
    return {
        "ipc": f"ipc://{tmp_path}/tokenizer",
        "tcp": "tcp://127.0.0.1:0",
        "tcp6": "tcp://[::1]:0",
    }


def target(inbox: Inbox, tmp_path: Path) -> str:
    return addresses(tmp_path)["ipc"] if inbox.address.startswith("ipc:") else inbox.address


@pytest.mark.parametrize(
    "scheme",
    ["ipc", "tcp", pytest.param("tcp6", marks=pytest.mark.skipif(not has_ipv6(), reason="IPv6"))],
)
@in_loop()
async def test_two_ends_find_each_other_and_talk(tmp_path: Path, scheme: str) -> None:
    inbox = Inbox(addresses(tmp_path)[scheme], TOKENIZER, QUICK)
    outbox = Outbox(target(inbox, tmp_path), GATEWAY, QUICK)
    async with End(inbox) as below, End(outbox) as above:
        assert await above.up() == TOKENIZER
        assert await below.up() == GATEWAY

        assert outbox.send(TOKENIZER.instance_id, numbered(1))
        assert await below.message() == Received(GATEWAY, numbered(1))
        answer = TextDeltas((TextDelta("1", 0, "grüß 🙂", b"\x01\x00\x00\x00"),))
        assert inbox.send(GATEWAY.instance_id, answer)
        assert await above.message() == Received(TOKENIZER, answer)


@in_loop()
async def test_a_peer_may_come_before_the_one_it_looks_for(tmp_path: Path) -> None:
    address = addresses(tmp_path)["ipc"]
    outbox = Outbox(address, GATEWAY, QUICK)
    async with End(outbox) as above, End(Inbox(address, TOKENIZER, QUICK)):
        assert await above.up() == TOKENIZER


@in_loop()
async def test_a_status_travels_with_hello_and_when_it_changes(tmp_path: Path) -> None:
    inbox = Inbox(addresses(tmp_path)["ipc"], TOKENIZER, RARE)
    inbox.set_status(Heartbeat(ready=True, draining=False, num_requests=3))
    outbox = Outbox(addresses(tmp_path)["ipc"], GATEWAY, RARE)
    async with End(inbox), End(outbox) as above:
        first = await above.next(PeerChanged)
        assert first.heartbeat.num_requests == 3

        inbox.set_status(Heartbeat(ready=True, draining=True))
        second = await above.next(PeerChanged)  # long before the next interval
        assert second.heartbeat.draining
        assert outbox.heartbeat_of(TOKENIZER.instance_id) == second.heartbeat


@in_loop()
async def test_nothing_is_lost_below_the_high_water_mark_and_order_is_kept(tmp_path: Path) -> None:
    inbox = Inbox(addresses(tmp_path)["ipc"], TOKENIZER, QUICK)
    outbox = Outbox(addresses(tmp_path)["ipc"], GATEWAY, QUICK)
    async with End(outbox) as above:
        await above.up()
        num_sent = 0
        refused_since = None
        # Nobody calls inbox.receive: everything fills up, and stays full.
        while refused_since is None or time.monotonic() < refused_since + 1.5:
            if outbox.send(TOKENIZER.instance_id, numbered(num_sent)):
                num_sent += 1
                refused_since = None
            else:
                refused_since = refused_since or time.monotonic()
                await asyncio.sleep(0.01)
        assert num_sent > 4096

        async with End(inbox) as below:
            received = [(await below.message()).message for _ in range(num_sent)]
            assert received == [numbered(number) for number in range(num_sent)]
            assert outbox.send(TOKENIZER.instance_id, numbered(num_sent))  # there is room again
            assert (await below.message()).message == numbered(num_sent)
        # Not being read for longer than the heartbeat limit is not being dead, on either side.
        assert PeerDown not in {type(event) for event in below.events}


@in_loop()
async def test_back_pressure_works_downstream_to_upstream_too(tmp_path: Path) -> None:
    inbox = Inbox(addresses(tmp_path)["ipc"], TOKENIZER, QUICK)
    outbox = Outbox(addresses(tmp_path)["ipc"], GATEWAY, QUICK)
    async with End(inbox) as below:
        await below.up()
        big = UnknownRequests(("x" * 1_000_000,))
        num_sent = await fill(inbox, GATEWAY.instance_id, big)
        async with End(outbox) as above:
            for _ in range(num_sent):
                assert (await above.message()).message == big


@in_loop()
async def test_one_peer_that_does_not_read_does_not_hold_up_another(tmp_path: Path) -> None:
    inbox = Inbox(addresses(tmp_path)["ipc"], TOKENIZER, QUICK)
    address = addresses(tmp_path)["ipc"]
    deaf = Outbox(address, a_peer("gateway", 1), QUICK)
    async with End(inbox) as below, End(Outbox(address, GATEWAY, QUICK)) as above:
        for _ in range(2):
            await below.up()
        await fill(inbox, "g1", UnknownRequests(("x" * 1_000_000,)))

        assert inbox.send("g0", UnknownRequests(("here",)))
        assert (await above.message()).message == UnknownRequests(("here",))
        await deaf.close("test over")


@pytest.mark.parametrize("leaver", ["inbox", "outbox"])
@in_loop()
async def test_goodbye_is_seen_at_once_behind_what_was_sent(tmp_path: Path, leaver: str) -> None:
    inbox = Inbox(addresses(tmp_path)["ipc"], TOKENIZER, RARE)
    outbox = Outbox(addresses(tmp_path)["ipc"], GATEWAY, RARE)
    async with End(inbox) as below, End(outbox) as above:
        await below.up()
        await above.up()
        going, staying, peer = (
            (below, above, GATEWAY) if leaver == "inbox" else (above, below, TOKENIZER)
        )
        last: AnyMessage = (
            UnknownRequests(("last",)) if leaver == "inbox" else LiveRequests(("last",))
        )
        for _ in range(300):
            assert going.link.send(peer.instance_id, last)
        await going.close("shut down")

        for _ in range(300):
            assert (await staying.message()).message == last
        assert (await staying.down()).reason == "said goodbye: shut down"
        assert not staying.link.send(peer.instance_id, last)


@in_loop()
async def test_the_end_of_a_connection_waits_for_what_is_still_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.transport._READ_BATCH", 1)  # reading takes many turns
    monkeypatch.setattr("common.transport._PROBE_DELAY_S", 0.0)
    address = addresses(tmp_path)["ipc"]
    num_strays = num_errors("no_hello")
    async with End(Inbox(address, TOKENIZER, RARE)) as below:
        for number in range(5):
            peer = a_peer("gateway", number)
            async with End(Outbox(address, peer, RARE)) as above:
                await above.up()
                for _ in range(60):
                    assert above.link.send(TOKENIZER.instance_id, numbered(number))
            for _ in range(60):
                assert (await below.message()).peer == peer
            assert (await below.down()).reason == "said goodbye: test over"
    assert num_errors("no_hello") == num_strays


@in_loop()
async def test_a_restart_on_the_same_address_is_one_loss_and_one_arrival(tmp_path: Path) -> None:
    first = Inbox("tcp://127.0.0.1:0", TOKENIZER, QUICK)
    address = first.address
    async with End(Outbox(address, GATEWAY, QUICK)) as above:
        async with End(first):
            assert await above.up() == TOKENIZER
        await above.down()
        again = a_peer("tokenizer", 1)
        async with End(Inbox(address, again, QUICK)) as below:
            assert await above.up() == again
            assert await below.up() == GATEWAY


@in_loop()
async def test_a_third_peer_takes_part_within_five_seconds(tmp_path: Path) -> None:
    address = addresses(tmp_path)["ipc"]
    first, second, third = (a_peer("tokenizer", number) for number in range(3))
    async with (
        End(Inbox(address, first, QUICK)),
        End(Inbox(address, second, QUICK)),
        End(Outbox(address, GATEWAY, QUICK)) as above,
    ):
        assert {await above.up(), await above.up()} == {first, second}

        async with End(Inbox(address, third, QUICK)) as below:
            assert (await above.next(PeerUp, limit_s=5.0)).peer == third
            assert above.link.send(third.instance_id, numbered(3))
            assert (await below.message()).message == numbered(3)
        assert (await above.down()).peer == third
        assert set(above.link.peers.values()) == {first, second}


@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")
@in_loop()
async def test_a_peer_with_two_addresses_is_one_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plaintext = options(0.1, 0.8, allow_plaintext_tcp=True)
    inbox = Inbox("tcp://[::]:0", TOKENIZER, plaintext)  # serves IPv4 as well
    port = int(inbox.address.rpartition(":")[2])

    async def both(_address: str, _kind: str) -> frozenset[str]:
        return frozenset({f"tcp://127.0.0.1:{port}", f"tcp://[::1]:{port}"})

    monkeypatch.setattr("common.transport.find_endpoints", both)
    async with End(inbox) as below, End(Outbox(f"tcp://name:{port}", GATEWAY, plaintext)) as above:
        await above.up()
        await below.up()
        # However the two connections interleave, they settle on one and stay there: redialling
        # every second, as two that displace each other would, never passes 3 s of quiet.
        counts: list[tuple[int, int]] = []
        while len(counts) < 2 or counts[-1] != counts[-2]:
            await asyncio.sleep(3.0)
            counts.append((len(above.events), len(below.events)))
        assert above.link.send(TOKENIZER.instance_id, numbered(1))
        assert (await below.message()).message == numbered(1)


@in_loop(limit_s=120)
async def test_two_hundred_peers_that_come_and_go_leave_no_descriptor_behind(
    tmp_path: Path,
) -> None:
    address = addresses(tmp_path)["ipc"]
    process = psutil.Process()
    async with End(Inbox(address, TOKENIZER, QUICK)) as below:
        num_before = 0
        for number in range(200):
            peer = a_peer("gateway", number)
            async with End(Outbox(address, peer, QUICK)) as above:
                await above.up()
                assert await below.up() == peer
            assert (await below.down()).peer == peer
            if number == 2:  # the executor's threads and the like are there by now
                num_before = process.num_fds()
        await wait_until(lambda: process.num_fds() <= num_before)
        assert not below.link.peers


@in_loop(limit_s=60)
async def test_a_hundred_downstream_peers_that_come_and_go_are_each_seen_once(
    tmp_path: Path,
) -> None:
    address = addresses(tmp_path)["ipc"]
    async with End(Outbox(address, GATEWAY, QUICK)) as above:
        for first in range(0, 100, 10):
            peers = {a_peer("tokenizer", first + number) for number in range(10)}
            ends = [End(Inbox(address, peer, QUICK)) for peer in peers]
            assert {await above.up() for _ in peers} == peers
            # Goodbye and the connection's end arrive in a race, ten at a time.
            await asyncio.gather(*(end.close() for end in ends))
            assert {(await above.down()).peer for _ in peers} == peers


@in_loop()
async def test_closing_leaves_no_socket_file(tmp_path: Path) -> None:
    address = addresses(tmp_path)["ipc"]
    async with End(Inbox(address, TOKENIZER, QUICK)) as below:
        assert isinstance(below.link, Inbox)
        assert os.path.exists(below.link.address.removeprefix("ipc://"))  # noqa: ASYNC240
    assert list((tmp_path / "tokenizer").iterdir()) == []


@in_loop()
async def test_socket_files_of_killed_processes_are_swept(tmp_path: Path) -> None:
    directory = tmp_path / "tokenizer"
    directory.mkdir(mode=0o700)
    dead, young = (socket_path(str(directory), "tokenizer", name) for name in ("dead", "young"))
    for path in (dead, young):
        with socket.socket(socket.AF_UNIX) as leftover:
            leftover.bind(str(path))
    an_hour_ago = time.time() - 3600
    os.utime(dead, (an_hour_ago, an_hour_ago))

    async with End(Inbox(f"ipc://{directory}", TOKENIZER, QUICK)) as below:
        assert isinstance(below.link, Inbox)
        os.utime(below.link.address.removeprefix("ipc://"), (an_hour_ago, an_hour_ago))
        async with End(Inbox(f"ipc://{directory}", a_peer("tokenizer", 1), QUICK)):
            names = {path.name for path in directory.iterdir()}
    assert names == {"tokenizer-t0.sock", "tokenizer-t1.sock", young.name}


@in_loop()
async def test_a_taken_address_is_a_startup_error(tmp_path: Path) -> None:
    async with End(Inbox("tcp://127.0.0.1:0", TOKENIZER, QUICK)) as below:
        assert isinstance(below.link, Inbox)
        with pytest.raises(StartupError, match=r"cannot listen on tcp://127.0.0.1:\d+: .* in use"):
            Inbox(below.link.address, a_peer("tokenizer", 1), QUICK)


@in_loop()
async def test_a_host_that_is_not_ours_is_a_startup_error(tmp_path: Path) -> None:
    plaintext = options(0.1, 0.8, allow_plaintext_tcp=True)
    with pytest.raises(StartupError, match=r"cannot listen on tcp://no-such-host.invalid:7101"):
        Inbox("tcp://no-such-host.invalid:7101", TOKENIZER, plaintext)


@pytest.mark.skipif(not has_ipv6(), reason="IPv6")
@in_loop()
async def test_a_name_may_stand_for_an_ipv6_address(monkeypatch: pytest.MonkeyPatch) -> None:
    record = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [record])

    async with End(Inbox("tcp://localhost:0", TOKENIZER, QUICK)) as below:
        assert isinstance(below.link, Inbox)
        assert below.link.address.startswith("tcp://[::1]:")


@in_loop()
async def test_discovery_does_not_fail_silently(tmp_path: Path) -> None:
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    (tmp_path / f"tokenizer-{'x' * 100}.sock").touch()  # no socket's path may be so long

    async with End(Outbox(f"ipc://{tmp_path}", GATEWAY, QUICK)):
        await wait_until(lambda: bool(failures))
    assert "File name too long" in str(failures[0]["exception"])


@in_loop()
async def test_too_long_a_socket_path_names_the_limit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has \d+ bytes, a socket's path at most 107"):
        Inbox(f"ipc://{tmp_path}/{'x' * 100}", TOKENIZER, QUICK)


@in_loop()
async def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match=r"written to by others \(mode 777\): chmod 700 it"):
        Inbox(f"ipc://{tmp_path}/open", TOKENIZER, QUICK)


@in_loop()
async def test_tcp_beyond_this_machine_needs_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--mesh-keys DIR"):
        Inbox("tcp://0.0.0.0:0", TOKENIZER, QUICK)
    with pytest.raises(ConfigError, match="--mesh-keys DIR"):
        Outbox("tcp://tokenizer:7101", GATEWAY, QUICK)


@in_loop()
async def test_peers_with_the_mesh_keys_talk_over_tcp(tmp_path: Path) -> None:
    generate_keys(tmp_path / "keys")
    keyed = options(0.1, 0.8, mesh_keys=tmp_path / "keys")
    inbox = Inbox("tcp://0.0.0.0:0", TOKENIZER, keyed)
    port = inbox.address.rpartition(":")[2]
    async with (
        End(inbox) as below,
        End(Outbox(f"tcp://127.0.0.1:{port}", GATEWAY, keyed)) as above,
    ):
        await above.up()
        assert above.link.send(TOKENIZER.instance_id, numbered(1))
        assert (await below.message()).message == numbered(1)


@pytest.mark.parametrize("stranger", ["other keys", "no keys"])
@in_loop()
async def test_who_has_not_the_mesh_keys_stays_outside(tmp_path: Path, stranger: str) -> None:
    generate_keys(tmp_path / "keys")
    generate_keys(tmp_path / "other")
    num_before = num_errors("handshake")
    keyed = options(0.1, 0.8, mesh_keys=tmp_path / "keys")
    other = options(0.1, 0.8, mesh_keys=tmp_path / "other") if stranger == "other keys" else QUICK
    inbox = Inbox("tcp://127.0.0.1:0", TOKENIZER, keyed)
    outsider = Outbox(inbox.address, a_peer("gateway", 9), other)
    async with (
        End(inbox) as below,
        End(outsider) as outside,
        End(Outbox(inbox.address, GATEWAY, keyed)),
    ):
        assert await below.up() == GATEWAY
        await wait_until(lambda: num_errors("handshake") > num_before)
        assert list(below.link.peers) == [GATEWAY.instance_id]
        assert outside.events == []


@in_loop()
async def test_who_has_the_mesh_keys_does_not_talk_to_a_server_without_them(
    tmp_path: Path,
) -> None:
    generate_keys(tmp_path / "keys")
    keyed = options(0.1, 0.8, mesh_keys=tmp_path / "keys")
    inbox = Inbox("tcp://127.0.0.1:0", TOKENIZER, QUICK)
    num_before = num_errors("handshake")
    async with End(inbox) as below, End(Outbox(inbox.address, GATEWAY, keyed)) as above:
        await wait_until(lambda: num_errors("handshake") > num_before)
        assert (above.events, below.events) == ([], [])
