"""A `common.link.Link` in memory, for testing service shells without sockets."""

import asyncio
from collections.abc import Mapping

from common.link import LinkEvent, Peer, PeerChanged, PeerDown, PeerUp, Received
from common.messages import AnyMessage, Heartbeat


class MemoryLink:
    """The test plays all peers: it puts events in, and reads what the service sent.

    `sent` lists (instance id, message) in order; `wait_sent` waits for the next one. A peer in
    `full` refuses messages, like a queue at its high-water mark.
    """

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}
        self._heartbeats: dict[str, Heartbeat] = {}
        self._events: asyncio.Queue[LinkEvent] = asyncio.Queue()
        self._news = asyncio.Condition()
        self._announcing: asyncio.Future[None] | None = None
        self.sent: list[tuple[str, AnyMessage]] = []
        self.full: set[str] = set()
        self.status: Heartbeat | None = None
        self.closed: str | None = None

    @property
    def peers(self) -> Mapping[str, Peer]:
        return self._peers

    def heartbeat_of(self, instance_id: str) -> Heartbeat | None:
        return self._heartbeats.get(instance_id)

    def send(self, instance_id: str, message: AnyMessage) -> bool:
        if instance_id not in self._peers or instance_id in self.full:
            return False
        self.sent.append((instance_id, message))
        self._announcing = asyncio.ensure_future(self._announce())
        return True

    def set_status(self, status: Heartbeat) -> None:
        self.status = status

    async def receive(self) -> LinkEvent:
        return await self._events.get()

    async def close(self, reason: str) -> None:
        self.closed = reason

    def peer_up(self, peer: Peer, heartbeat: Heartbeat | None = None) -> None:
        self._peers[peer.instance_id] = peer
        self._events.put_nowait(PeerUp(peer))
        if heartbeat is not None:
            self.peer_changed(peer, heartbeat)

    def peer_changed(self, peer: Peer, heartbeat: Heartbeat) -> None:
        self._heartbeats[peer.instance_id] = heartbeat
        self._events.put_nowait(PeerChanged(peer, heartbeat))

    def peer_down(self, peer: Peer, reason: str = "silent") -> None:
        self._peers.pop(peer.instance_id, None)
        self._heartbeats.pop(peer.instance_id, None)
        self._events.put_nowait(PeerDown(peer, reason))

    def deliver(self, peer: Peer, message: AnyMessage) -> None:
        self._events.put_nowait(Received(peer, message))

    async def wait_sent(self, count: int, deadline_s: float = 5.0) -> list[tuple[str, AnyMessage]]:
        """All sent messages, once there are at least `count`; TimeoutError after the deadline."""
        async with asyncio.timeout(deadline_s), self._news:
            await self._news.wait_for(lambda: len(self.sent) >= count)
        return self.sent

    async def _announce(self) -> None:
        async with self._news:
            self._news.notify_all()
