"""Ends of real links for tests: in this process with `End`, in another one with `EndProcess`."""

import asyncio
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

from prometheus_client import REGISTRY

from common.config import ServiceOptions
from common.link import LinkEvent, Peer, PeerDown, PeerUp, Received
from common.messages import CancelRequest, ServiceKind
from common.transport import Inbox, Outbox

ROOT = Path(__file__).parents[2]


def options(interval_s: float, limit_s: float, **others: object) -> ServiceOptions:
    return ServiceOptions.model_validate(
        {"heartbeat_interval_s": interval_s, "heartbeat_limit_s": limit_s, **others}
    )


# Loss by silence within a second, so that no test waits for the real limits.
QUICK = options(0.1, 0.8)
# Heartbeats so rare that whatever happens in a test happens without them.
RARE = options(60, 180)

Event = TypeVar("Event", bound=LinkEvent)


def a_peer(kind: ServiceKind, number: int = 0) -> Peer:
    return Peer(kind, f"{kind}-{number}", f"{kind[0]}{number}")


def num_errors(reason: str, peer_kind: str = "unknown") -> float:
    """How many protocol errors this process has counted."""
    labels = {"peer_kind": peer_kind, "reason": reason}
    return REGISTRY.get_sample_value("splitfuse:protocol_errors_total", labels) or 0.0


async def wait_until(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110  whatever it is, it announces itself to nobody
            await asyncio.sleep(0.01)


class End:
    """Collects what a link receives, and waits for what a test expects."""

    def __init__(self, link: Inbox | Outbox) -> None:
        self.link = link
        self.events: list[LinkEvent] = []
        self._seen = 0
        self._task = asyncio.create_task(self._collect())
        self._news = asyncio.Condition()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, reason: str = "test over") -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await self.link.close(reason)

    async def next(
        self,
        kind: type[Event],
        where: Callable[[Event], bool] = lambda _: True,
        limit_s: float = 10.0,
    ) -> Event:
        """The first event of this type behind the last one returned; skips others."""
        async with asyncio.timeout(limit_s), self._news:
            while True:
                while self._seen < len(self.events):
                    event = self.events[self._seen]
                    self._seen += 1
                    if isinstance(event, kind) and where(event):
                        return event
                await self._news.wait()

    async def up(self) -> Peer:
        return (await self.next(PeerUp)).peer

    async def down(self, limit_s: float = 10.0) -> PeerDown:
        return await self.next(PeerDown, limit_s=limit_s)

    async def message(self) -> Received:
        return await self.next(Received)

    async def _collect(self) -> None:
        while True:
            event = await self.link.receive()
            async with self._news:
                self.events.append(event)
                self._news.notify_all()


class EndProcess:
    """A process of its own with one link end.

    Every peer that comes up is sent `flood` messages, numbered from 0.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(
        cls,
        end: str,
        address: str,
        peer: Peer,
        interval_s: float = 0.1,
        limit_s: float = 0.8,
        flood: int = 0,
    ) -> Self:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.link_end", end, address),
            *(peer.kind, peer.name, peer.instance_id, str(interval_s), str(limit_s), str(flood)),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        return cls(process)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.communicate()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def line(self, word: str) -> str:
        """The next line of the process that begins with `word`: open, PeerUp, PeerDown, ..."""
        assert self._process.stdout is not None
        async with asyncio.timeout(15):
            while True:
                line = (await self._process.stdout.readline()).decode()
                if not line:
                    raise EOFError(f"the process ended without a line {word!r}")
                if line.startswith(word):
                    return line.removeprefix(word).strip()


async def _live(end: str, address: str, peer: Peer, beats: ServiceOptions, flood: int) -> None:
    link = Inbox(address, peer, beats) if end == "inbox" else Outbox(address, peer, beats)
    print("open", link.address if isinstance(link, Inbox) else address, flush=True)
    while True:
        event = await link.receive()
        print(type(event).__name__, event.peer.instance_id, flush=True)
        if isinstance(event, PeerUp) and flood:
            for number in range(flood):
                message = CancelRequest(str(number), "deadline")
                while not link.send(event.peer.instance_id, message):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            print("flooded", flush=True)


def _main() -> None:
    end, address, kind, name, instance_id, interval_s, limit_s, flood = sys.argv[1:]
    known: dict[str, ServiceKind] = {"tokenizer": "tokenizer", "gateway": "gateway"}
    peer = Peer(known[kind], name, instance_id)
    beats = options(float(interval_s), float(limit_s))
    asyncio.run(_live(end, address, peer, beats, int(flood)))


if __name__ == "__main__":
    _main()
