"""Requests that hold no KV, in the order in which they want to start.

A heap with lazy removal: a removed entry stays until it surfaces, or until such entries outnumber
the live ones, so push, pop and remove are O(log n) amortised and memory is bounded.
"""

import heapq
from collections.abc import Iterator

from services.scheduler.request import Request
from services.scheduler.work import num_attended

_SLACK = 64  # dead entries that are not worth a rebuild


class WaitingQueue:
    """Ordered by `Request.order`."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int]] = []
        self._live: dict[int, Request] = {}  # by arrival number
        #: tokens to compute if none of them is cached
        self.num_tokens = 0
        self.num_attended = 0  #: how many tokens these attend to, summed up

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Request]:
        """All requests, in no particular order."""
        return iter(self._live.values())

    def __contains__(self, request: Request) -> bool:
        return request.arrival in self._live

    def push(self, request: Request) -> None:
        """Add a request that is not in the queue."""
        heapq.heappush(self._heap, request.order)
        self._live[request.arrival] = request
        self._count(len(request.token_ids), 1)

    def peek(self) -> Request | None:
        """The first request, None if there is none."""
        heap, live = self._heap, self._live
        while heap and heap[0][-1] not in live:
            heapq.heappop(heap)
        return live[heap[0][-1]] if heap else None

    def remove(self, request: Request) -> None:
        """Take out a request that is in the queue."""
        del self._live[request.arrival]
        self._count(len(request.token_ids), -1)
        if len(self._heap) > 2 * len(self._live) + _SLACK:
            self._heap = [waiting.order for waiting in self._live.values()]
            heapq.heapify(self._heap)

    def _count(self, num_tokens: int, sign: int) -> None:
        self.num_tokens += sign * num_tokens
        self.num_attended += sign * num_attended(0, num_tokens)

    def check(self) -> None:
        """Raise AssertionError unless the heap has all live requests and the tokens add up."""
        if not {order[-1] for order in self._heap} >= self._live.keys():
            raise AssertionError("a waiting request is not in the heap")
        lengths = [len(request.token_ids) for request in self]
        attended = sum(num_attended(0, length) for length in lengths)
        if (self.num_tokens, self.num_attended) != (sum(lengths), attended):
            raise AssertionError("the queue's tokens do not add up")
