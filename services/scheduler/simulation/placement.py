"""Placement that does not look at the work ahead: the baseline for placement by backlog."""

from services.scheduler.replicas import Replica, Replicas
from services.scheduler.request import Request


class RoundRobinReplicas(Replicas):
    """Workers take requests in turns, and keep what they were given.

    It is how DeepSpeed-MII's load balancer spreads requests over replicas.
    """

    def __init__(self) -> None:
        super().__init__()
        self._num_placed = 0

    def place(self, request: Request) -> Replica | None:
        """The next worker in turn among those that are big enough; None if none is."""
        roomy = [r for r in self.accepting() if len(request.token_ids) < r.length_limit]
        if not roomy:
            return None
        self._num_placed += 1
        return roomy[(self._num_placed - 1) % len(roomy)]

    def steal(self, thief: Replica) -> Request | None:
        """Nothing: it would be placement by backlog, later."""
        return None
