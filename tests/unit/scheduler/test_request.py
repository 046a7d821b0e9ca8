from array import array
from itertools import pairwise

import pytest

from common.errors import InvalidTransition
from common.messages import SamplingParams
from services.scheduler.request import ENDED, STORY_LENGTH, TRANSITIONS, Request, RequestStatus


def a_request(num_prompt: int = 5, num_output: int = 2, min_tokens: int = 0) -> Request:
    return Request(
        owner="tokenizer",
        request_id="r1",
        arrival=1,
        arrived_at=0.0,
        token_ids=array("i", range(num_prompt + num_output)),
        num_prompt_tokens=num_prompt,
        sampling=SamplingParams(min_tokens=min_tokens),
        stop_token_ids=frozenset({42}),
    )


def test_its_life_leads_from_waiting_over_running_to_an_end() -> None:
    life = [
        RequestStatus.WAITING,
        RequestStatus.RUNNING,
        RequestStatus.PREEMPTED,
        RequestStatus.WAITING,
        RequestStatus.RUNNING,
        RequestStatus.FINISHED,
    ]

    assert all(after in TRANSITIONS[before] for before, after in pairwise(life))


def test_every_state_has_its_row_and_nothing_follows_an_end() -> None:
    assert TRANSITIONS.keys() == set(RequestStatus)
    assert all(not TRANSITIONS[status] for status in ENDED)


def test_it_can_be_cancelled_or_fail_in_every_state_that_is_not_an_end() -> None:
    for status in set(RequestStatus) - ENDED:
        assert TRANSITIONS[status] >= ENDED


def test_an_impossible_move_raises_with_the_story() -> None:
    request = a_request()
    request.move(RequestStatus.RUNNING, 1.5, "started on worker-0")
    request.move(RequestStatus.FINISHED, 2.0, "stop")

    with pytest.raises(
        InvalidTransition,
        match=r"r1 of tokenizer cannot go from finished to running .*1\.500000 running: started",
    ):
        request.move(RequestStatus.RUNNING, 3.0, "again")

    assert request.status is RequestStatus.FINISHED


def test_its_story_is_bounded() -> None:
    request = a_request()
    for number in range(STORY_LENGTH):
        request.move(RequestStatus.RUNNING, number, "up")
        request.move(RequestStatus.WAITING, number, "down")

    assert len(request.story) == STORY_LENGTH


def test_uncomputed_tokens_are_those_no_step_was_sent_for() -> None:
    request = a_request(num_prompt=5, num_output=2)
    request.num_computed_tokens = 6
    request.num_pending_tokens = 1

    assert request.num_uncomputed_tokens == 2
    assert request.num_output_tokens == 2


def test_a_stop_token_counts_once_min_tokens_are_out() -> None:
    request = a_request(min_tokens=3)

    assert not request.ended_by(42, num_before=2)
    assert request.ended_by(42, num_before=3)
    assert not request.ended_by(41, num_before=3)


def test_digests_are_kept_apart_by_block_size() -> None:
    request = a_request(num_prompt=9, num_output=0)

    assert len(request.digests(4, 9)) == 2
    assert len(request.digests(3, 9)) == 3
    assert request.digests(4, 9) is request.digests(4, 9)
