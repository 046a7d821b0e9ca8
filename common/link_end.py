"""What both ends of a link share, whatever carries the bytes: who is up, what waits, when to beat.

What messages mean for who is up is decided in `common.peer_table`; this shell performs it.

- Sending never blocks. What the socket does not take at once waits in the peer's own queue, bounded
  in messages and bytes; above that `send` returns False. Order within a peer is kept.
- Receiving is bounded too. When the service does not call `receive`, sockets are no longer read and
  the pressure reaches the senders. Heartbeats then wait unread with the rest, so meanwhile nobody's
  silence counts; afterwards everybody has a full limit anew.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, Generic

import structlog

from common.clock import Clock
from common.codec import MAX_MESSAGE_BYTES, decode, encode
from common.config import ServiceOptions
from common.errors import ProtocolError
from common.link import LinkEvent, Peer, PeerDown, PeerUp, Received
from common.log import Once
from common.messages import AnyMessage, Goodbye, Heartbeat
from common.metrics import counter
from common.outgoing import Outgoing
from common.peer_table import Action, Emit, Fault, Hangup, Key, PeerTable, Reply
from common.unread import Unread

logger = structlog.get_logger(__name__)

PROTOCOL_ERRORS = counter(
    "protocol_errors", "Messages of peers that were dropped", ("peer_kind", "reason")
)

# What waits for one peer.
MAX_QUEUED_MESSAGES: Final = 4096
MAX_QUEUED_BYTES: Final = MAX_MESSAGE_BYTES
# What waits for the service, from all peers together.
MAX_UNREAD_EVENTS: Final = 4096
MAX_UNREAD_BYTES: Final = MAX_MESSAGE_BYTES

_FLUSH_S: Final = 1.0  # at close, for what waits
_FLUSH_RETRY_S: Final = 0.005


class ConnectionGone(Exception):
    """The socket knows that nobody is there any more."""


class LinkEnd(ABC, Generic[Key]):
    """Implements `common.link.Link` but for the sockets.

    `Key` names a connection. Must be made, used and closed inside one running event loop.

    Invariant: `_outgoing` has no empty queue, so a key in it is a connection that is blocked.
    """

    def __init__(
        self, identity: Peer, options: ServiceOptions, clock: Clock, *, initiator: bool
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._identity = identity
        self._clock = clock
        self._tick_s = options.heartbeat_interval_s
        self._table: PeerTable[Key] = PeerTable(
            identity,
            initiator=initiator,
            silence_limit_s=options.heartbeat_limit_s,
            tick_s=self._tick_s,
            now=clock.now(),
        )
        self._status = Heartbeat(ready=False, draining=False)
        self._outgoing: dict[Key, Outgoing] = {}
        self._unread = Unread(MAX_UNREAD_EVENTS, MAX_UNREAD_BYTES)
        self._gone: set[Key] = set()  # cannot be reached; lost when all that came is read
        self._once = Once()
        self._closed = False
        self._timer = self._loop.call_later(self._tick_s, self._tick)

    @property
    def peers(self) -> Mapping[str, Peer]:
        return self._table.peers

    def heartbeat_of(self, instance_id: str) -> Heartbeat | None:
        return self._table.heartbeat_of(instance_id)

    def send(self, instance_id: str, message: AnyMessage) -> bool:
        key = self._table.key_of(instance_id)
        if key is None or self._closed:
            return False
        return self._post(key, encode(message))

    def set_status(self, status: Heartbeat) -> None:
        if status != self._status:
            self._status = status
            self._announce()

    async def receive(self) -> LinkEvent:
        was_full = self._unread.is_full
        event = await self._unread.get()
        if was_full and not self._unread.is_full:
            self._table.excuse(self._clock.now())
            self._poke_all()
        return event

    async def _say_goodbye(self, reason: str) -> None:
        """The common first half of closing: nothing is sent or judged after this."""
        self._timer.cancel()
        farewell = encode(Goodbye(reason))
        for key in self._table.keys_up():
            self._post(key, farewell)
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_S):
                while any(self._outgoing.values()):
                    for key in list(self._outgoing):
                        self._flush(key)
                    await asyncio.sleep(_FLUSH_RETRY_S)

    # ── what the two ends do differently ─────────────────────────────────────────────────────────

    @abstractmethod
    def _transmit(self, key: Key, data: bytes) -> bool:
        """Hand a message to the socket; False if it takes none now.

        Raises:
            ConnectionGone: and the peer with it.
        """

    @abstractmethod
    def _hang_up(self, action: Hangup[Key]) -> None:
        """Give up a connection; what waits for it is already dropped."""

    @abstractmethod
    def _poke_all(self) -> None:
        """Look at every socket again: it may be read, or hold what was overlooked."""

    @abstractmethod
    def _describe(self, key: Key) -> str:
        """A connection without a peer, for the log; stable over its attempts."""

    # ── in ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def _may_read(self) -> bool:
        return not self._unread.is_full and not self._closed

    def _arrived(self, key: Key, frames: Sequence[bytes]) -> None:
        now = self._clock.now()
        self._table.heard(key, now)
        try:
            if len(frames) != 1:
                raise ProtocolError(f"{len(frames)} frames instead of one", reason="malformed")
            message = decode(frames[0])
        except ProtocolError as error:
            self._note(Fault(key, self._table.peer_at(key), error.reason, str(error)))
            return
        self._perform(self._table.received(key, message, now), len(frames[0]))

    def _perform(self, actions: Sequence[Action[Key]], num_bytes: int = 0) -> None:
        for action in actions:
            match action:
                case Emit(event):
                    self._emit(event, num_bytes if isinstance(event, Received) else 0)
                case Reply(key, message):
                    self._post(key, encode(message))
                case Hangup():
                    self._outgoing.pop(action.key, None)
                    self._hang_up(action)
                case Fault():
                    self._note(action)

    def _emit(self, event: LinkEvent, num_bytes: int) -> None:
        self._unread.put(event, num_bytes)
        match event:
            case PeerUp(peer):
                logger.info("peer up", **_fields(peer))
                self._greet(peer)
            case PeerDown(peer, reason):
                logger.info("peer down", reason=reason, **_fields(peer))

    def _greet(self, peer: Peer) -> None:
        key = self._table.key_of(peer.instance_id)
        if key is not None:
            self._post(key, encode(self._status))

    def _note(self, fault: Fault[Key]) -> None:
        kind = fault.peer.kind if fault.peer else "unknown"
        PROTOCOL_ERRORS.labels(kind, fault.reason).inc()
        who = fault.peer.instance_id if fault.peer else self._describe(fault.key)
        if self._once.first((who, fault.reason)):
            fields = _fields(fault.peer) if fault.peer else {"peer": who}
            logger.warning(
                "protocol error", reason=fault.reason, detail=fault.detail[:500], **fields
            )

    # ── out ──────────────────────────────────────────────────────────────────────────────────────

    def _post(self, key: Key, data: bytes) -> bool:
        """Send now or queue; False if the peer's queue is full or the peer just went."""
        waiting = self._outgoing.get(key)
        if waiting is not None:
            return waiting.push(data)
        try:
            if self._transmit(key, data):
                return True
        except ConnectionGone:
            self._unreachable(key)
            return False
        waiting = self._outgoing[key] = Outgoing(MAX_QUEUED_MESSAGES, MAX_QUEUED_BYTES)
        return waiting.push(data)

    def _flush(self, key: Key) -> None:
        """Send what waits, as far as the socket takes it."""
        waiting = self._outgoing[key]
        try:
            while waiting and self._transmit(key, waiting.first()):
                waiting.pop()
        except ConnectionGone:
            self._unreachable(key)
            return
        if not waiting:
            del self._outgoing[key]

    def _unreachable(self, key: Key) -> None:
        """Lost, but not yet: what it had sent may still be unread."""
        self._outgoing.pop(key, None)
        self._gone.add(key)
        self._poke_all()

    def _bury(self) -> None:
        """All that came has been read: those who are gone are lost now."""
        while self._gone and not self._closed:
            self._perform(self._table.lost(self._gone.pop(), "connection lost"))

    def _announce(self) -> None:
        """A heartbeat to everybody; sending is also how an Inbox notices who is gone.

        One that would have to wait behind others is not queued: they are sign of life enough, and
        the next interval brings a newer one.
        """
        heartbeat = encode(self._status)
        for key in self._table.keys_up():
            if key not in self._outgoing:
                self._post(key, heartbeat)

    def _tick(self) -> None:
        now = self._clock.now()
        self._timer = self._loop.call_later(self._tick_s, self._tick)
        if self._unread.is_full:
            self._table.excuse(now)
        self._announce()
        self._perform(self._table.tick(now))
        self._poke_all()


def _fields(peer: Peer) -> dict[str, str]:
    return {"peer": peer.name, "peer_kind": peer.kind, "instance": peer.instance_id}
