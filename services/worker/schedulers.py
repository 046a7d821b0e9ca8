"""Which scheduler a worker joins (pure)."""

from collections.abc import Mapping
from hashlib import blake2b

from common.link import Peer
from common.messages import Heartbeat


def choose_scheduler(peers: Mapping[str, Peer], heartbeats: Mapping[str, Heartbeat]) -> str | None:
    """The scheduler with fewest workers, so that each gets its share.

    Ready or not does not matter: a scheduler becomes ready by having a worker. Equals are taken in
    an order that is the same for all workers, so that they do not spread out before one is served.

    Args:
        peers: those that are up, by instance id.
        heartbeats: the last of each; one that has not sent any is not considered.

    Returns:
        Its instance id; None if there is none that takes new work.
    """
    candidates = [
        instance_id
        for instance_id in peers
        if instance_id in heartbeats and not heartbeats[instance_id].draining
    ]
    return min(candidates, key=lambda i: (heartbeats[i].num_workers, _order(i)), default=None)


def _order(instance_id: str) -> bytes:
    return blake2b(instance_id.encode(), digest_size=8).digest()
