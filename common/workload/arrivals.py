"""When requests of a load begin."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.workload.draw import Draw

PAPER_STAGGER_S = 0.01  # per client: DeepSpeed-FastGen's clients start within U(0, clients) * 10 ms


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """So many clients; each sends its next request when its last one is answered."""

    num_clients: int

    def __post_init__(self) -> None:
        if self.num_clients < 1:
            raise ValueError(f"a closed loop needs a client at least, got {self.num_clients}")

    def draw_starts(self, draw: Draw) -> list[float]:
        """Seconds that each client waits before its first request."""
        limit_s = self.num_clients * PAPER_STAGGER_S if self.num_clients > 1 else 0.0
        return [draw.uniform(0.0, limit_s) for _ in range(self.num_clients)]


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Requests come at a rate, whether or not others are answered.

    The times between them are gamma distributed with shape `burstiness`, as in vLLM's benchmark: 1
    is a Poisson process, less is burstier (their coefficient of variation is
    burstiness ** -0.5), more is more regular.
    """

    requests_per_s: float
    burstiness: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.requests_per_s < float("inf") and 0 < self.burstiness < float("inf")):
            raise ValueError(
                f"rate {self.requests_per_s} and burstiness {self.burstiness} must be positive"
            )

    def draw_times(self, num_requests: int, draw: Draw) -> list[float]:
        """When each request is sent, in seconds from the start, ascending from above 0."""
        scale_s = 1 / (self.requests_per_s * self.burstiness)
        times: list[float] = []
        now = 0.0
        for _ in range(num_requests):
            now += draw.gammavariate(self.burstiness, scale_s)
            times.append(now)
        return times


@dataclass(frozen=True, slots=True)
class Recorded:
    """Requests come when they came in a trace."""

    times_s: Sequence[float]  #: seconds from the start, one per request, ascending

    def __post_init__(self) -> None:
        if any(
            later < earlier for earlier, later in zip(self.times_s, self.times_s[1:], strict=False)
        ):
            raise ValueError("the arrival times of a trace must ascend")


Arrivals = ClosedLoop | OpenLoop | Recorded
