import pytest

from common.messages import Heartbeat, Limits
from services.tokenizer.model_info import ModelInfo
from services.tokenizer.schedulers import Schedulers

LIMITS = Limits("worker-side name", 4096, 10_000, 512)


def schedulers(**model: int | None) -> Schedulers:
    return Schedulers(ModelInfo("m", max_token_id=419, **model))  # type: ignore[arg-type]


def ready(
    num_requests: int = 0, limits: Limits | None = LIMITS, draining: bool = False
) -> Heartbeat:
    return Heartbeat(True, draining, num_requests, limits)


def test_there_are_no_limits_before_a_scheduler_is_ready() -> None:
    group = schedulers()
    assert group.limits() is None
    group.up("s")
    group.changed("s", Heartbeat(ready=False, draining=False, limits=LIMITS))
    assert group.limits() is None


def test_limits_are_the_smallest_of_all_with_our_name() -> None:
    group = schedulers(max_model_len=2048, vocab_size=None)
    group.changed("a", ready())
    group.changed("b", ready(limits=Limits("x", 8192, 700, 500)))
    assert group.limits() == Limits("m", 2048, 700, 500)


def test_the_scheduler_with_the_fewest_of_our_requests_is_next() -> None:
    group = schedulers()
    group.changed("a", ready(num_requests=1))
    group.changed("b", ready(num_requests=9))
    assert group.choose({"a": 2, "b": 1}) == "b"
    assert group.choose({"a": 1, "b": 1}) == "a"  # then who has fewest of everybody's


@pytest.mark.parametrize(
    "heartbeat",
    [
        Heartbeat(ready=False, draining=False, limits=LIMITS),
        ready(draining=True),
        ready(limits=None),
        ready(limits=Limits("x", 4096, 10_000, vocab_size=419)),  # no row for id 419
    ],
)
def test_a_scheduler_that_cannot_take_work_is_not_chosen(heartbeat: Heartbeat) -> None:
    group = schedulers()
    group.changed("a", heartbeat)
    assert (group.choose({}), group.limits()) == (None, None)


def test_a_scheduler_with_a_full_link_is_passed_over_until_retry() -> None:
    group = schedulers()
    group.changed("a", ready())
    group.refused("a")
    assert (group.choose({}), group.has_full) == (None, True)
    group.retry()
    assert (group.choose({}), group.has_full) == ("a", False)


def test_a_lost_scheduler_is_gone() -> None:
    group = schedulers()
    group.changed("a", ready())
    group.down("a")
    assert (group.choose({}), list(group)) == (None, [])
