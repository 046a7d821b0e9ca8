"""Which scheduler a worker joins."""

from common.link import Peer
from common.messages import Heartbeat
from services.worker.schedulers import choose_scheduler


def peers(*names: str) -> dict[str, Peer]:
    return {name: Peer("scheduler", name, name) for name in names}


def beat(num_workers: int = 0, *, draining: bool = False, ready: bool = False) -> Heartbeat:
    return Heartbeat(ready=ready, draining=draining, num_workers=num_workers)


def test_the_one_with_fewest_workers_is_chosen_ready_or_not() -> None:
    beats = {"a": beat(2, ready=True), "b": beat(1), "c": beat(3)}

    assert choose_scheduler(peers("a", "b", "c"), beats) == "b"


def test_equals_are_taken_in_the_same_order_by_everybody() -> None:
    beats = {name: beat(1) for name in "abc"}

    assert choose_scheduler(peers("a", "b", "c"), beats) == choose_scheduler(
        peers("c", "b", "a"), beats
    )


def test_one_that_drains_or_has_not_spoken_is_not_chosen() -> None:
    assert choose_scheduler(peers("a", "b"), {"a": beat(draining=True)}) is None
    assert choose_scheduler({}, {}) is None
