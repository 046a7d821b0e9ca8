"""Tenants share device time, prompts go by slack, and nobody waits for ever."""

import random
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.fair_order import MAX_IDLE_TENANTS, MAX_SLACK_S, FairOrder


@dataclass
class Waiting:
    number: int
    tenant: str
    cost: float
    start_tag: float
    key: float


class Device:
    """Starts requests by their keys, one after the other, and remembers who had how much time."""

    def __init__(self) -> None:
        self.order = FairOrder()
        self.waiting: list[Waiting] = []
        self.started: list[Waiting] = []
        self._count = 0

    def ask(self, tenant: str, cost: float, slack: float = 0.0) -> Waiting:
        self._count += 1
        tag, key = self.order.arrive(tenant, cost, slack)
        request = Waiting(self._count, tenant, cost, tag, key)
        self.waiting.append(request)
        return request

    def serve(self) -> Waiting:
        request = min(self.waiting, key=lambda r: (r.key, r.number))
        self.waiting.remove(request)
        self.order.start(request.start_tag, request.cost)
        self.order.end(request.tenant, 0.0)
        self.started.append(request)
        return request

    @property
    def largest(self) -> float:
        """Cost of the dearest request."""
        return max((request.cost for request in self.started), default=0.0)

    def time_of(self, tenant: str) -> float:
        return sum(r.cost for r in self.started if r.tenant == tenant)


def test_equal_requests_of_one_tenant_go_in_order_of_arrival() -> None:
    device = Device()
    asked = [device.ask("a", 1.0, slack=2.0) for _ in range(5)]

    assert [device.serve() for _ in range(5)] == asked


def test_a_prompt_with_less_slack_goes_first_if_it_comes_soon_enough() -> None:
    device = Device()
    device.ask("a", 1.0, slack=3.0)
    urgent = device.ask("a", 0.1, slack=0.2)  # is due at 1.2, the other at 3.0

    assert device.serve() is urgent


def test_a_flood_queues_behind_itself() -> None:
    device = Device()
    for _ in range(1000):
        device.ask("flood", 1.0)
    for _ in range(100):
        device.serve()

    polite = device.ask("polite", 1.0)

    # The request of the flood whose turn has come at the same virtual time may be before it.
    assert polite in [device.serve(), device.serve()]


def test_several_floods_do_not_delay_a_newcomer_more_than_one() -> None:
    device = Device()
    for _ in range(200):
        for tenant in ("a", "b", "c", "d"):
            device.ask(tenant, 1.0)
    for _ in range(300):
        device.serve()

    newcomer = device.ask("newcomer", 1.0)

    assert newcomer in [device.serve() for _ in range(5)]


def test_tenants_with_dear_and_cheap_requests_get_the_same_time() -> None:
    device = Device()
    for _ in range(300):
        device.ask("dear", 2.0)
        device.ask("cheap", 0.25)
    for _ in range(200):
        device.serve()

    assert abs(device.time_of("dear") - device.time_of("cheap")) <= 2 * 2.0


def test_who_was_away_does_not_come_back_with_a_claim() -> None:
    device = Device()
    device.ask("away", 1.0)
    for _ in range(50):
        device.ask("busy", 1.0)
    for _ in range(40):
        device.serve()
    for _ in range(50):
        device.ask("away", 1.0)
    before = device.time_of("busy")
    for _ in range(10):
        device.serve()

    assert device.time_of("busy") - before >= 4


def test_what_was_not_computed_is_given_back() -> None:
    order = FairOrder()
    order.arrive("other", 1.0, 0.0)
    order.arrive("a", 10.0, 0.0)
    order.end("a", -10.0)  # cancelled before it started

    assert order.arrive("a", 1.0, 0.0) == (0.0, 0.0)


def test_what_cost_more_than_expected_is_owed() -> None:
    order = FairOrder()
    order.arrive("other", 1.0, 0.0)
    order.arrive("a", 1.0, 0.0)
    order.end("a", 5.0)

    assert order.arrive("a", 1.0, 0.0)[0] == 6.0


def test_slack_is_bounded() -> None:
    assert FairOrder().arrive("a", 1.0, 1e9) == (0.0, MAX_SLACK_S)
    assert FairOrder().arrive("a", 1.0, -5.0) == (0.0, 0.0)


def test_when_nobody_waits_all_is_forgotten() -> None:
    order = FairOrder()
    order.arrive("a", 100.0, 0.0)
    order.end("a", 0.0)

    assert order.num_tenants == 0
    assert order.arrive("a", 1.0, 0.0) == (0.0, 0.0)


def test_memory_does_not_grow_with_the_tenants_that_come_by() -> None:
    order = FairOrder()
    order.arrive("stays", 1.0, 0.0)
    for number in range(10 * MAX_IDLE_TENANTS):
        tag, _ = order.arrive(f"one-shot {number}", 1.0, 0.0)
        order.start(tag, 0.0)
        order.end(f"one-shot {number}", 0.0)

    assert order.num_tenants <= MAX_IDLE_TENANTS + 1


events = st.lists(
    st.one_of(
        st.none(),  # the next one starts
        st.tuples(st.sampled_from("abcd"), st.floats(0.01, 5.0), st.floats(0.0, 10.0)),
    ),
    min_size=1,
    max_size=120,
)


@given(events, st.integers(0, 2**32))
def test_later_arrivals_overtake_a_request_by_no_more_than_the_stated_bound(
    happenings: list[tuple[str, float, float] | None], seed: int
) -> None:
    device = Device()
    rng = random.Random(seed)
    leads: dict[int, float] = {}  # by request: key - virtual time when it came
    most = 1  # tenants at a time
    for happening in happenings:
        arrivals = [happening] if happening is not None else []
        if rng.random() < 0.3:  # a stream of tenants that come once, each without any slack
            arrivals.append((f"once {rng.random()}", rng.uniform(0.01, 2.0), 0.0))
        for arrival in arrivals:
            request = device.ask(*arrival)
            leads[request.number] = request.key - device.order.virtual_time
        if happening is None and device.waiting:
            device.serve()
        most = max(most, len({waiting.tenant for waiting in device.waiting}))
    while device.waiting:
        device.serve()

    for index, request in enumerate(device.started):
        overtook = [r.cost for r in device.started[:index] if r.number > request.number]
        lead = leads[request.number]
        assert sum(overtook) <= 2 * most * lead + (most + 1) * device.largest + 1e-6
