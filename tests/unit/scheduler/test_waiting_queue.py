from array import array

from hypothesis import given
from hypothesis import strategies as st

from common.messages import SamplingParams
from services.scheduler.request import Request
from services.scheduler.waiting_queue import WaitingQueue


def a_request(arrival: int, priority: int = 0, num_tokens: int = 3) -> Request:
    return Request(
        owner="o",
        request_id=f"r{arrival}",
        arrival=arrival,
        arrived_at=0.0,
        token_ids=array("i", [1] * num_tokens),
        num_prompt_tokens=num_tokens,
        sampling=SamplingParams(),
        stop_token_ids=frozenset(),
        priority=priority,
    )


def drain(queue: WaitingQueue) -> list[str]:
    order = []
    while (request := queue.peek()) is not None:
        order.append(request.request_id)
        queue.remove(request)
    return order


def test_requests_come_out_by_priority_and_then_arrival() -> None:
    queue = WaitingQueue()
    for request in (a_request(3), a_request(1), a_request(4, priority=-1), a_request(2)):
        queue.push(request)

    assert drain(queue) == ["r4", "r1", "r2", "r3"]


def test_an_empty_queue_has_no_first() -> None:
    assert WaitingQueue().peek() is None


def test_a_removed_request_does_not_come_out_and_can_be_put_back() -> None:
    queue = WaitingQueue()
    first, second = a_request(1), a_request(2)
    for request in (first, second):
        queue.push(request)

    queue.remove(first)
    assert first not in queue
    assert queue.peek() is second

    queue.push(first)
    assert drain(queue) == ["r1", "r2"]


def test_the_tokens_of_all_that_wait_are_counted() -> None:
    queue = WaitingQueue()
    big = a_request(1, num_tokens=100)
    queue.push(big)
    queue.push(a_request(2, num_tokens=7))
    queue.remove(big)

    assert queue.num_tokens == 7


def test_ten_thousand_cancelled_requests_behind_a_stuck_one_leave_no_trace() -> None:
    queue = WaitingQueue()
    queue.push(a_request(0))
    for arrival in range(1, 10_001):
        request = a_request(arrival)
        queue.push(request)
        queue.remove(request)

    assert len(queue._heap) < 200


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_it_equals_a_sorted_list(moves: list[tuple[bool, int]]) -> None:
    queue, model = WaitingQueue(), dict[int, Request]()
    for add, arrival in moves:
        if add and arrival not in model:
            model[arrival] = a_request(arrival, priority=arrival % 3)
            queue.push(model[arrival])
        elif not add and arrival in model:
            queue.remove(model.pop(arrival))
        first = min(model.values(), key=lambda r: r.order, default=None)
        assert queue.peek() is first
        assert len(queue) == len(model)
        queue.check()
