"""One end of a link as a service sees it, whatever carries the bytes.

A service owns at most one link downstream (`transport.Outbox`: it connects to every peer that
discovery finds) and one upstream (`transport.Inbox`: peers connect to it). Both look the same:
peers come, send messages and go. `tests/support` has a pair that lives in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from common.messages import AnyMessage, Heartbeat, ServiceKind


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end; `instance_id` is the key everywhere."""

    kind: ServiceKind
    name: str
    instance_id: str


@dataclass(frozen=True, slots=True)
class PeerUp:
    """The peer said Hello and speaks our version."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class PeerChanged:
    """The peer's heartbeat differs from the one before (ready, draining, limits, load)."""

    peer: Peer
    heartbeat: Heartbeat


@dataclass(frozen=True, slots=True)
class PeerDown:
    """The peer is lost: silent for too long, gone on purpose, replaced, or not reachable.

    Comes once per PeerUp, after everything that was received from the peer.
    """

    peer: Peer
    reason: str


@dataclass(frozen=True, slots=True)
class Received:
    """A valid message that is the service's business (not Hello, Heartbeat, Goodbye, Refused)."""

    peer: Peer
    message: AnyMessage


LinkEvent: TypeAlias = PeerUp | PeerChanged | PeerDown | Received


class Link(Protocol):
    """What a service may do with one side of its links."""

    @property
    def peers(self) -> Mapping[str, Peer]:
        """Peers that are up, by instance id."""
        ...

    def heartbeat_of(self, instance_id: str) -> Heartbeat | None:
        """The last heartbeat of a peer that is up; None before the first."""
        ...

    def send(self, instance_id: str, message: AnyMessage) -> bool:
        """Queue a message to a peer; never blocks.

        Returns:
            False if the peer is not up or its queue is at the high-water mark: the message was not
            taken, and the caller decides what that means (refuse, retry on another peer, wait).
        """
        ...

    def set_status(self, status: Heartbeat) -> None:
        """What our heartbeats say from now on; a change is sent at once."""
        ...

    async def receive(self) -> LinkEvent:
        """The next event; waits until there is one."""
        ...

    async def close(self, reason: str) -> None:
        """Say Goodbye, flush what is queued for a short while, and release the sockets."""
        ...
