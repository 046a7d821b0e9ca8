"""The messages that wait for one peer, bounded in number and in bytes."""

from collections import deque


class Outgoing:
    """First in, first out. `push` refuses what is above the high-water mark.

    A message larger than `max_bytes` is taken when nothing else waits, or it could never be sent.
    """

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._waiting: deque[bytes] = deque()
        self._num_bytes = 0
        self._max_messages = max_messages
        self._max_bytes = max_bytes

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def num_bytes(self) -> int:
        """Invariant: the sum of the lengths of all that waits."""
        return self._num_bytes

    def push(self, data: bytes) -> bool:
        """Append; False and unchanged if that would exceed a limit."""
        if self._waiting and (
            len(self._waiting) >= self._max_messages
            or self._num_bytes + len(data) > self._max_bytes
        ):
            return False
        self._waiting.append(data)
        self._num_bytes += len(data)
        return True

    def first(self) -> bytes:
        """What is to be sent next. There must be something."""
        return self._waiting[0]

    def pop(self) -> None:
        """Forget the first: it was sent."""
        self._num_bytes -= len(self._waiting.popleft())
