"""Pure: which connections have a peer behind them, and what each message does to that.

One table per link end. A connection is one attempt to talk, named by a key of the shell's choice,
and goes through

    connecting ──Hello──▶ up ──silence, Goodbye, loss, replacement──▶ gone
         └───────────────refused, loss──────────────────────────────────┘

A lost connection is a lost peer: nobody knows which messages died with it, so there is no silent
reconnect. The side that connected dials again and says Hello, and the peer is up anew.

The side that connects (`initiator`) says Hello first; the other side answers with its own Hello or
with Refused. A message on a connection without Hello, as after one side has given the other up, is
answered with Refused(SAY_HELLO_FIRST): dial again.

The newest Hello is right. An instance that says Hello on a second connection has given up the first
(or found us under two addresses); a known name with a new instance id means that the old one died.
"""

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Generic, TypeAlias, TypeVar, get_args

from common.link import LinkEvent, Peer, PeerChanged, PeerDown, PeerUp, Received
from common.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    CancelRequest,
    GenerateRequest,
    Goodbye,
    Heartbeat,
    Hello,
    LiveRequests,
    Refused,
    RequestFailed,
    ServiceKind,
    StepPlan,
    StepRejected,
    StepResult,
    TextDeltas,
    TokenDeltas,
    TokenizeRequest,
    UnknownRequests,
    WorkerJoin,
)

SAY_HELLO_FIRST: Final = "say Hello first"

# Who connects to whom.
DOWNSTREAM: Mapping[ServiceKind, ServiceKind] = {
    "gateway": "tokenizer",
    "tokenizer": "scheduler",
    "worker": "scheduler",
}

# (receiver, sender) -> what may be sent beside Hello, Refused, Heartbeat and Goodbye.
_ALLOWED: Mapping[tuple[str, str], tuple[type, ...]] = {
    ("tokenizer", "gateway"): (TokenizeRequest, CancelRequest, LiveRequests),
    ("gateway", "tokenizer"): (TextDeltas, RequestFailed, UnknownRequests),
    ("scheduler", "tokenizer"): (GenerateRequest, CancelRequest, LiveRequests),
    ("tokenizer", "scheduler"): (TokenDeltas, RequestFailed, UnknownRequests),
    ("scheduler", "worker"): (WorkerJoin, StepResult, StepRejected),
    ("worker", "scheduler"): (StepPlan,),
}

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

REDIAL_S = 0.2  # the peer may be back, or restarted, at once
REFUSED_REDIAL_S = 5.0  # nothing will change before somebody has stepped in
MAX_REASON_CHARS: Final = 500  # of a peer's own words that reach our logs

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Emit:
    """Tell the service."""

    event: LinkEvent


@dataclass(frozen=True, slots=True)
class Reply(Generic[Key]):
    """Write this to the connection; a failure to do so does not matter."""

    key: Key
    message: AnyMessage


@dataclass(frozen=True, slots=True)
class Hangup(Generic[Key]):
    """The connection is of no use any more; whoever made it dials again after `redial_s`.

    `twin` is the connection by which the same instance is reached now: while it lasts, do not.
    """

    key: Key
    redial_s: float = REDIAL_S
    twin: Key | None = None


@dataclass(frozen=True, slots=True)
class Fault(Generic[Key]):
    """The message was dropped: count it and log it once. `reason` is one word for the metric."""

    key: Key
    peer: Peer | None  # None before its Hello
    reason: str
    detail: str


Action: TypeAlias = Emit | Reply[Key] | Hangup[Key] | Fault[Key]


@dataclass(slots=True)
class _Session:
    peer: Peer | None  # None until its Hello
    heartbeat: Heartbeat | None
    last_heard: float  # clock seconds of the last bytes that came


class PeerTable(Generic[Key]):
    """The state of one link end.

    Args:
        me: who we are.
        initiator: we connect (Outbox) or are connected to (Inbox).
        silence_limit_s: a peer that is silent for longer is lost.
        tick_s: how often `tick` will be called.
        now: clock seconds, like every `now` below.

    Invariant: at most one session per instance id and per (kind, name) is up.
    """

    def __init__(
        self, me: Peer, *, initiator: bool, silence_limit_s: float, tick_s: float, now: float
    ) -> None:
        self._me = me
        self._initiator = initiator
        self._silence_limit_s = silence_limit_s
        self._tick_s = tick_s
        self._ticked_at = now
        self._sessions: dict[Key, _Session] = {}
        self._peers: dict[str, Peer] = {}
        self._keys: dict[str, Key] = {}  # instance id -> its session
        self.peers: Mapping[str, Peer] = MappingProxyType(self._peers)
        self.accepts = _accepted_kinds(me.kind, initiator)

    def key_of(self, instance_id: str) -> Key | None:
        """The connection of a peer that is up."""
        return self._keys.get(instance_id)

    def keys_up(self) -> list[Key]:
        return list(self._keys.values())

    def peer_at(self, key: Key) -> Peer | None:
        session = self._sessions.get(key)
        return session.peer if session else None

    def heartbeat_of(self, instance_id: str) -> Heartbeat | None:
        key = self._keys.get(instance_id)
        return None if key is None else self._sessions[key].heartbeat

    def hello(self) -> Hello:
        """Our own first message."""
        return Hello(PROTOCOL_VERSION, self._me.kind, self._me.name, self._me.instance_id)

    def opened(self, key: Key, now: float) -> None:
        """We have dialled; the other side has not answered yet."""
        self._sessions[key] = _Session(None, None, now)

    def heard(self, key: Key, now: float) -> None:
        """Bytes came, whatever they mean: the peer lives."""
        if session := self._sessions.get(key):
            session.last_heard = now

    def received(self, key: Key, message: AnyMessage, now: float) -> list[Action[Key]]:
        """A message that decodes came by this connection."""
        self.heard(key, now)
        session = self._sessions.get(key)
        if isinstance(message, Hello):
            return self._hello(key, message, now)
        if isinstance(message, Refused):
            return self._refused(key, message)
        if session is None or session.peer is None:
            fault = Fault(key, None, "no_hello", f"{type(message).__name__} before Hello")
            return [fault, Reply(key, Refused(SAY_HELLO_FIRST))]
        if isinstance(message, Heartbeat):
            if message == session.heartbeat:
                return []
            session.heartbeat = message
            return [Emit(PeerChanged(session.peer, message))]
        if isinstance(message, Goodbye):
            return self.lost(key, f"said goodbye: {message.reason[:MAX_REASON_CHARS]}")
        if isinstance(message, _ALLOWED[self._me.kind, session.peer.kind]):
            return [Emit(Received(session.peer, message))]
        detail = f"a {session.peer.kind} may not send {type(message).__name__}"
        return [Fault(key, session.peer, "not_allowed", detail)]

    def lost(self, key: Key, reason: str, redial_s: float = REDIAL_S) -> list[Action[Key]]:
        """The connection is broken, or the peer has left."""
        if self._sessions.get(key) is None:
            return []
        return [*self._down(key, reason), Hangup(key, redial_s)]

    def tick(self, now: float) -> list[Action[Key]]:
        """Give up the peers that have been silent for too long.

        If we come much too late ourselves (the process was stopped, the machine asleep), that time
        does not count as their silence: what they sent meanwhile is still to be read.
        """
        late_s = now - self._ticked_at - self._tick_s
        if late_s > self._tick_s:
            for session in self._sessions.values():
                session.last_heard = min(now, session.last_heard + late_s)
        self._ticked_at = now
        actions: list[Action[Key]] = []
        for key in self.keys_up():
            silent_s = now - self._sessions[key].last_heard
            if silent_s > self._silence_limit_s:
                actions += self.lost(key, f"silent for {silent_s:.1f} s")
        return actions

    def excuse(self, now: float) -> None:
        """We did not read until now: nobody's silence counts from before."""
        for session in self._sessions.values():
            session.last_heard = now

    def _hello(self, key: Key, hello: Hello, now: float) -> list[Action[Key]]:
        if (objection := self._objection(hello)) is not None:
            reason, detail = objection
            fault = Fault(key, self.peer_at(key), reason, detail)
            return [fault, Reply(key, Refused(detail)), *self.lost(key, detail, REFUSED_REDIAL_S)]
        peer = Peer(_as_kind(hello.kind), hello.name, hello.instance_id)
        actions = [] if self.peer_at(key) is None else self._down(key, "said Hello again")
        actions += self._replace(peer, key)
        self._sessions[key] = _Session(peer, None, now)
        self._peers[peer.instance_id] = peer
        self._keys[peer.instance_id] = key
        answer: list[Action[Key]] = [] if self._initiator else [Reply(key, self.hello())]
        return [*actions, *answer, Emit(PeerUp(peer))]

    def _objection(self, hello: Hello) -> tuple[str, str] | None:
        if hello.version != PROTOCOL_VERSION:
            return "version", (
                f"protocol version {hello.version} and {PROTOCOL_VERSION} ({self._me.kind} "
                f"{self._me.name}) do not mix: run the same release everywhere"
            )
        if hello.kind not in self.accepts:
            kind = hello.kind if hello.kind in get_args(ServiceKind) else "stranger"
            return "kind", (
                f"a {kind} does not belong on this link: the {self._me.kind} {self._me.name} "
                f"expects a {' or '.join(sorted(self.accepts))}"
            )
        if not (_NAME.fullmatch(hello.name) and _NAME.fullmatch(hello.instance_id)):
            return "name", "name and instance id must be 1 to 64 of A-Z a-z 0-9 . _ -"
        return None

    def _replace(self, peer: Peer, by: Key) -> list[Action[Key]]:
        """End the sessions that contradict a Hello of `peer` on connection `by`."""
        actions: list[Action[Key]] = []
        twin = self._keys.get(peer.instance_id)
        if twin is not None:
            actions += [*self._down(twin, "connected again"), Hangup(twin, twin=by)]
        for old in [p for p in self._peers.values() if (p.kind, p.name) == (peer.kind, peer.name)]:
            key = self._keys[old.instance_id]
            reason = f"replaced by another process named {peer.name}"
            refusal = [] if self._initiator else [Reply(key, Refused(reason))]
            actions += [*self._down(key, reason), *refusal, Hangup(key, REFUSED_REDIAL_S)]
        return actions

    def _refused(self, key: Key, message: Refused) -> list[Action[Key]]:
        if message.reason == SAY_HELLO_FIRST:
            return self.lost(key, "the peer had given us up")
        detail = f"the peer refuses us: {message.reason[:MAX_REASON_CHARS]}"
        fault = Fault(key, self.peer_at(key), "refused", detail)
        return [fault, *self.lost(key, detail, REFUSED_REDIAL_S)]

    def _down(self, key: Key, reason: str) -> list[Action[Key]]:
        session = self._sessions.pop(key)
        if session.peer is None:
            return []
        del self._peers[session.peer.instance_id]
        del self._keys[session.peer.instance_id]
        return [Emit(PeerDown(session.peer, reason))]


def _accepted_kinds(mine: ServiceKind, initiator: bool) -> frozenset[ServiceKind]:
    if initiator:
        return frozenset({DOWNSTREAM[mine]})
    return frozenset(upstream for upstream, target in DOWNSTREAM.items() if target == mine)


def _as_kind(kind: str) -> ServiceKind:
    return next(known for known in get_args(ServiceKind) if known == kind)
