"""A load made concrete: which requests there are, and when each is sent."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.workload.arrivals import Arrivals, ClosedLoop, OpenLoop, Recorded
from common.workload.draw import Draw
from common.workload.lengths import Lengths
from common.workload.timeline import RequestShape


@dataclass(frozen=True, slots=True)
class Load:
    """Requests in the order in which they are sent.

    Closed loop: each of `len(starts_s)` clients waits its time, then takes request after request
    from the front of `shapes`, the next when its last one is answered. Open loop: request `i` is
    sent at `starts_s[i]`, whatever became of the others.
    """

    shapes: Sequence[RequestShape]
    #: seconds from the start: of each client's first request, or (open loop) of each request
    starts_s: Sequence[float]
    is_closed: bool

    @property
    def num_clients(self) -> int | None:
        """How many requests there are at once; None if the load is open."""
        return len(self.starts_s) if self.is_closed else None


def draw_load(lengths: Lengths, arrivals: Arrivals, num_requests: int, draw: Draw) -> Load:
    """The load of one run: equal draws give equal loads.

    Raises:
        ValueError: the arrivals are recorded ones, and not as many as requests.
    """
    return make_load([lengths.draw(draw) for _ in range(num_requests)], arrivals, draw)


def make_load(shapes: Sequence[RequestShape], arrivals: Arrivals, draw: Draw) -> Load:
    """A load of given requests, e.g. of a trace.

    Raises:
        ValueError: the arrivals are recorded ones, and not as many as requests.
    """
    match arrivals:
        case ClosedLoop():
            return Load(shapes, arrivals.draw_starts(draw), is_closed=True)
        case OpenLoop():
            return Load(shapes, arrivals.draw_times(len(shapes), draw), is_closed=False)
        case Recorded():
            if len(arrivals.times_s) != len(shapes):
                raise ValueError(
                    f"{len(arrivals.times_s)} recorded arrivals for {len(shapes)} requests"
                )
            return Load(shapes, arrivals.times_s, is_closed=False)
