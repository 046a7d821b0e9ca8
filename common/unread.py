"""The events that wait for the service, bounded in number and in bytes."""

import asyncio
from collections import deque

from common.link import LinkEvent


class Unread:
    """First in, first out. Above a limit it is full, and stays so until half of it is read.

    Being full is a signal to stop reading sockets; `put` takes what comes all the same, because an
    event that is not the peer's doing (it was lost) must not go astray.
    """

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._waiting: deque[tuple[LinkEvent, int]] = deque()
        self._num_bytes = 0
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._arrival = asyncio.Event()
        self.is_full = False

    def put(self, event: LinkEvent, num_bytes: int) -> None:
        """Append an event that came from a message of `num_bytes`."""
        self._waiting.append((event, num_bytes))
        self._num_bytes += num_bytes
        self._arrival.set()
        self.is_full = self.is_full or self._is_above(1.0)

    async def get(self) -> LinkEvent:
        """Take the first event; waits until there is one."""
        while not self._waiting:
            self._arrival.clear()
            await self._arrival.wait()
        event, num_bytes = self._waiting.popleft()
        self._num_bytes -= num_bytes
        self.is_full = self.is_full and self._is_above(0.5)
        return event

    def _is_above(self, share: float) -> bool:
        return (
            len(self._waiting) >= share * self._max_events
            or self._num_bytes >= share * self._max_bytes
        )
