"""The link ends on ZeroMQ, and the only file that speaks it.

`Inbox` is one ROUTER, bound; `Outbox` is one DEALER per endpoint that discovery finds. Everything
but the sockets is in `common.link_end`.

- Every socket is read from the event loop by its file descriptor: no thread and no task per peer.
- A connection is dialled once. When it breaks, what had come is delivered, then the peer is down,
  and a new socket dials: ZeroMQ's own reconnect would hide that messages were lost.
- Loss is noticed by the connection's end (a monitor socket at both ends, at once for a process that
  died) or by silence (a process that is stopped, a host that is gone).
- tcp runs CURVE unless it stays on this machine; see `common.curve`.
"""

import asyncio
import itertools
import socket as posix_socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog
import zmq
from zmq.auth.asyncio import AsyncioAuthenticator

from common.clock import Clock, MonotonicClock
from common.codec import MAX_MESSAGE_BYTES, encode
from common.config import ServiceOptions
from common.curve import MeshKeys, keys_for
from common.discovery import AddressBook, find_endpoints, socket_path, split_tcp, tcp_endpoint
from common.errors import StartupError
from common.link import Peer
from common.link_end import ConnectionGone, LinkEnd
from common.peer_table import DOWNSTREAM, Fault, Hangup
from common.socket_directory import prepare_directory

logger = structlog.get_logger(__name__)

DNS_PERIOD_S: Final = 2.0
DIRECTORY_PERIOD_S: Final = 0.25  # listing one costs 0.02 ms, and a restart is noticed soon
DIRECTORY_QUIET_PERIOD_S: Final = 1.0  # once the same peers have been up for so long:
DIRECTORY_SETTLED_S: Final = 5.0

# Messages per direction inside ZeroMQ; few, because it does not count bytes.
SOCKET_HWM: Final = 64

_READ_BATCH: Final = 256  # messages per turn of the event loop
_HANDSHAKE_MS: Final = 5000
_HANDSHAKE_REDIAL_S: Final = 1.0
_LINGER_MS: Final = 300  # at close, for what ZeroMQ still holds
_PROBE_DELAY_S: Final = 0.02  # between a connection's end and the ROUTER's forgetting it
_ZAP_DOMAIN: Final = "mesh"
_BROKEN: Final = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
_REFUSED: Final = frozenset({zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL})


class _Wire:
    """A ZeroMQ socket in the event loop: calls `on_ready` when it may be read or written.

    ZeroMQ's descriptor signals an edge, not a level: whoever sends, or stops reading before the
    socket is empty, must `poke`, or the next message may lie there unnoticed.
    """

    def __init__(self, socket: zmq.Socket[bytes], on_ready: Callable[[], None]) -> None:
        self.socket = socket
        self._on_ready = on_ready
        self._loop = asyncio.get_running_loop()
        self._fd = int(socket.getsockopt(zmq.FD))
        self._poked = False
        self._may_be_read = False  # as of the last look
        self._loop.add_reader(self._fd, self.poke)
        self.poke()

    def poke(self) -> None:
        if not self._poked and not self.socket.closed:
            self._poked = True
            self._loop.call_soon(self._run)

    def read(self) -> Sequence[bytes] | None:
        """The next message's frames; None if there is none."""
        if not self._may_be_read:
            return None
        frames = self.socket.recv_multipart(zmq.NOBLOCK)
        self._look()
        return frames

    def close(self, linger_ms: int) -> None:
        if not self.socket.closed:
            self._loop.remove_reader(self._fd)
            self.socket.close(linger=linger_ms)

    def _run(self) -> None:
        self._poked = False
        if not self.socket.closed:
            self._look()
            self._on_ready()

    def _look(self) -> None:
        """Asking lets ZeroMQ do its own work, re-arms the edge, and is cheaper than a vain read."""
        self._may_be_read = bool(int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


class _Monitor:
    """Calls `on_broken(event)` when a connection of a socket ends.

    ZeroMQ's I/O thread writes the events holding a lock that closing needs, too. So it must never
    wait for us: there is no high-water mark, and monitoring ends before its reader does.
    """

    _numbers = itertools.count()

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        watched: zmq.Socket[bytes],
        on_broken: Callable[[zmq.Event], None],
    ) -> None:
        self._watched = watched
        self._on_broken = on_broken
        address = f"inproc://monitor-{next(self._numbers)}"
        watched.monitor(address, int(_BROKEN))
        pair = context.socket(zmq.PAIR)
        pair.setsockopt(zmq.RCVHWM, 0)
        pair.connect(address)
        self._wire = _Wire(pair, self._read)

    def close(self) -> None:
        """Before the watched socket is closed."""
        self._watched.monitor(None, 0)
        self._wire.close(linger_ms=0)

    def _read(self) -> None:
        while not self._wire.socket.closed and (frames := self._wire.read()) is not None:
            self._on_broken(zmq.Event(struct.unpack_from("=H", frames[0])[0]))


def _make_context() -> zmq.Context[zmq.Socket[bytes]]:
    """One per link end, so that closing one end cannot disturb another."""
    context = zmq.Context()
    context.max_sockets = context.get(zmq.SOCKET_LIMIT)  # an Outbox needs three per peer
    return context


class Inbox(LinkEnd[bytes]):
    """The end that peers connect to.

    Args:
        bind: `tcp://HOST:PORT` (port 0 = any free) or `ipc:///DIRECTORY`, which is made if missing.
        identity: who we are; decides which kinds of peers are accepted.
        options: heartbeats and keys.

    Raises:
        ConfigError: the address must not or cannot be used as it is.
        StartupError: it is taken.
    """

    def __init__(
        self, bind: str, identity: Peer, options: ServiceOptions, clock: Clock | None = None
    ) -> None:
        keys = keys_for(bind, options.mesh_keys, options.allow_plaintext_tcp)
        self._socket_file: Path | None = None
        if bind.startswith("ipc://"):
            directory = bind.removeprefix("ipc://")
            self._socket_file = socket_path(directory, identity.kind, identity.instance_id)
            prepare_directory(self._socket_file)
            bind = f"ipc://{self._socket_file}"
        super().__init__(identity, options, clock or MonotonicClock(), initiator=False)
        self._context = _make_context()
        self._authenticator = self._authenticate(keys) if keys else None
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if keys:
            router.setsockopt(zmq.CURVE_SERVER, 1)
            router.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
            router.setsockopt_string(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)
        try:
            endpoint = _numeric(bind)
            _set_common_options(router, endpoint)
            router.bind(endpoint)
        except (zmq.ZMQError, OSError) as error:
            self._timer.cancel()
            self._stop_authenticator()
            self._context.destroy(linger=0)
            raise StartupError(f"cannot listen on {bind}: {error.strerror}") from None
        self.address: str = router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._wire = _Wire(router, self._ready)
        self._monitor = _Monitor(self._context, router, self._connection_ended)

    async def close(self, reason: str) -> None:
        if self._closed:
            return
        await self._say_goodbye(reason)
        self._monitor.close()
        self._wire.close(_LINGER_MS)
        self._stop_authenticator()
        await asyncio.to_thread(self._context.term)
        if self._socket_file is not None:
            self._socket_file.unlink(missing_ok=True)

    def _authenticate(self, keys: MeshKeys) -> AsyncioAuthenticator:
        authenticator = AsyncioAuthenticator(self._context)
        authenticator.configure_curve_callback(_ZAP_DOMAIN, _OnlyTheMesh(keys))
        authenticator.start()
        return authenticator

    def _stop_authenticator(self) -> None:
        if self._authenticator is not None:
            self._authenticator.stop()

    def _ready(self) -> None:
        for key in list(self._outgoing):
            self._flush(key)
        for _ in range(_READ_BATCH):
            if not self._may_read:
                return
            frames = self._wire.read()
            if frames is None:
                self._bury()
                return
            self._arrived(frames[0], frames[1:])
        self._wire.poke()

    def _connection_ended(self, event: zmq.Event) -> None:
        """Some connection: the event does not say whose. Heartbeats find out.

        Of two ends that disagree on keys, only the one that reads the other's greeting first is
        told why; the other sees a connection that ends. So both count it.
        """
        if event in _REFUSED:
            detail = "a peer was refused: it has not this mesh's keys"
            self._note(Fault(b"", None, "handshake", detail))
        self._loop.call_later(_PROBE_DELAY_S, self._probe)

    def _probe(self) -> None:
        if not self._closed:
            self._announce()

    def _transmit(self, key: bytes, data: bytes) -> bool:
        try:
            self._wire.socket.send_multipart((key, data), zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                raise ConnectionGone from None
            raise
        finally:
            self._wire.poke()
        return True

    def _hang_up(self, action: Hangup[bytes]) -> None:
        """A ROUTER cannot close one connection; the table has forgotten it."""

    def _poke_all(self) -> None:
        self._wire.poke()

    def _describe(self, key: bytes) -> str:
        name = key.rpartition(b".")[0].decode("ascii", "backslashreplace")[:64]
        return name or key.hex()[:64] or self.address


class _Dealer:
    """One dialled connection of an Outbox."""

    def __init__(
        self,
        key: int,
        endpoint: str,
        context: zmq.Context[zmq.Socket[bytes]],
        socket: zmq.Socket[bytes],
        on_ready: Callable[["_Dealer"], None],
    ) -> None:
        self.key = key
        self.endpoint = endpoint
        self.broken: zmq.Event | None = None  # it has ended; what had come is still to be read
        self.monitor = _Monitor(context, socket, self._broke)
        self.wire = _Wire(socket, lambda: on_ready(self))

    def close(self) -> None:
        self.monitor.close()
        # What a broken connection still holds must not reach whoever listens there next.
        self.wire.close(_LINGER_MS if self.broken is None else 0)

    def _broke(self, event: zmq.Event) -> None:
        self.broken = self.broken or event
        self.wire.poke()


class Outbox(LinkEnd[int]):
    """The end that connects, to every peer that stands behind an address.

    Args:
        address: `tcp://HOST:PORT`, where HOST may have any number of addresses, or
            `ipc:///DIRECTORY`; peers may come later.
        identity: who we are; decides which kind of peers is looked for.
        options: heartbeats and keys.

    Raises:
        ConfigError: the address must not or cannot be used as it is.
    """

    def __init__(
        self, address: str, identity: Peer, options: ServiceOptions, clock: Clock | None = None
    ) -> None:
        self._keys = keys_for(address, options.mesh_keys, options.allow_plaintext_tcp)
        super().__init__(identity, options, clock or MonotonicClock(), initiator=True)
        self._context = _make_context()
        self._address = address
        self._book = AddressBook()
        self._dealers: dict[int, _Dealer] = {}
        self._numbers = itertools.count()
        self._peers_seen: frozenset[str] = frozenset()
        self._peers_seen_at = self._clock.now()
        self._discovery = asyncio.create_task(self._discover())
        self._discovery.add_done_callback(_raise_failure)

    async def close(self, reason: str) -> None:
        if self._closed:
            return
        self._discovery.cancel()
        await self._say_goodbye(reason)
        for dealer in self._dealers.values():
            dealer.close()
        self._dealers.clear()
        await asyncio.to_thread(self._context.term)

    async def _discover(self) -> None:
        while True:
            try:
                endpoints = await find_endpoints(self._address, DOWNSTREAM[self._identity.kind])
            except (OSError, UnicodeError) as error:
                endpoints = frozenset()
                if self._once.first("discovery"):
                    logger.info("no peers found", address=self._address, reason=str(error))
            if endpoints:
                self._once.forget("discovery")
            self._leave(self._book.found(endpoints))
            self._dial()
            await asyncio.sleep(self._discovery_period_s())

    def _discovery_period_s(self) -> float:
        if not self._address.startswith("ipc://"):
            return DNS_PERIOD_S
        now, peers = self._clock.now(), frozenset(self._table.peers)
        if peers != self._peers_seen or not peers:
            self._peers_seen, self._peers_seen_at = peers, now
        is_settled = now - self._peers_seen_at > DIRECTORY_SETTLED_S
        return DIRECTORY_QUIET_PERIOD_S if is_settled else DIRECTORY_PERIOD_S

    def _leave(self, unlisted: frozenset[str]) -> None:
        """Stop dialling what is not listed any more; a peer that is up is believed instead."""
        for key, dealer in list(self._dealers.items()):
            if dealer.endpoint in unlisted and self._table.peer_at(key) is None:
                self._perform(self._table.lost(key, "not listed any more"))

    def _dial(self) -> None:
        for endpoint in self._book.due(self._clock.now()):
            self._open(endpoint)

    def _open(self, endpoint: str) -> None:
        key = next(self._numbers)
        socket = self._context.socket(zmq.DEALER)
        _set_common_options(socket, endpoint)
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        socket.setsockopt(zmq.ROUTING_ID, f"{self._identity.instance_id}.{key}".encode())
        if self._keys:
            socket.setsockopt(zmq.CURVE_SERVERKEY, self._keys.public)
            socket.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.public)
            socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
        self._dealers[key] = _Dealer(key, endpoint, self._context, socket, self._ready)
        socket.connect(endpoint)
        self._table.opened(key, self._clock.now())
        self._post(key, encode(self._table.hello()))

    def _ready(self, dealer: _Dealer) -> None:
        if dealer.key in self._outgoing:
            self._flush(dealer.key)
        for _ in range(_READ_BATCH):
            if not self._may_read or dealer.wire.socket.closed:
                return
            frames = dealer.wire.read()
            if frames is None:
                self._emptied(dealer)
                return
            self._arrived(dealer.key, frames)
        dealer.wire.poke()

    def _emptied(self, dealer: _Dealer) -> None:
        """All that came was read; if the connection has ended, now the peer is lost."""
        if dealer.broken is None:
            return
        # Without keys, a handshake without a verdict was cut short by a peer that just left.
        ambiguous = dealer.broken == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and self._keys is None
        if ambiguous or dealer.broken == zmq.EVENT_DISCONNECTED:
            self._perform(self._table.lost(dealer.key, "connection lost"))
            return
        detail = "handshake failed: do both ends have the same mesh keys?"
        self._note(Fault(dealer.key, None, "handshake", detail))
        self._perform(self._table.lost(dealer.key, detail, _HANDSHAKE_REDIAL_S))

    def _transmit(self, key: int, data: bytes) -> bool:
        wire = self._dealers[key].wire
        try:
            wire.socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            return False
        finally:
            wire.poke()
        return True

    def _hang_up(self, action: Hangup[int]) -> None:
        dealer = self._dealers.pop(action.key)
        dealer.close()
        twin = None if action.twin is None else self._dealers[action.twin].endpoint
        self._book.hung_up(dealer.endpoint, self._clock.now() + action.redial_s, twin)
        if not self._closed:
            self._loop.call_later(action.redial_s, self._dial_unless_closed)

    def _dial_unless_closed(self) -> None:
        if not self._closed:
            self._dial()

    def _poke_all(self) -> None:
        for dealer in self._dealers.values():
            dealer.wire.poke()

    def _describe(self, key: int) -> str:
        return self._dealers[key].endpoint if key in self._dealers else self._address


def _raise_failure(task: asyncio.Task[None]) -> None:
    """As a callback, so that the loop's exception handler learns of it: nobody awaits the task."""
    if not task.cancelled():
        task.result()


class _OnlyTheMesh:
    """Lets in who proves to have the mesh's own key."""

    def __init__(self, keys: MeshKeys) -> None:
        self._keys = keys

    def callback(self, _domain: str, key: bytes) -> bool:
        return key == self._keys.public


def _set_common_options(socket: zmq.Socket[bytes], endpoint: str) -> None:
    socket.setsockopt(zmq.SNDHWM, SOCKET_HWM)
    socket.setsockopt(zmq.RCVHWM, SOCKET_HWM)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    socket.setsockopt(zmq.LINGER, 0)
    if endpoint.startswith("tcp://"):
        socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        # A host that vanished without a word, before or after Hello.
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
        socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
        socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)


def _numeric(bind: str) -> str:
    """ZeroMQ binds to IP addresses only: resolve `tcp://localhost:7101`."""
    if not bind.startswith("tcp://"):
        return bind
    host, port = split_tcp(bind)
    records = posix_socket.getaddrinfo(host, port, type=posix_socket.SOCK_STREAM)
    return tcp_endpoint(str(records[0][4][0]), port)
