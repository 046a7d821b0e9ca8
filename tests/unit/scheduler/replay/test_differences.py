"""What differs is said by path, in one line each."""

import pytest

from common.messages import Chunk, StepPlan
from common.token_ids import pack_ids
from services.scheduler.cost_model import StepShape
from services.scheduler.events import SendStep, Tick, WorkerLost
from services.scheduler.replay.differences import (
    MAX_SHOWN,
    brief,
    differences,
    first_differences,
)


def a_step(num_tokens: int, *more: Chunk) -> SendStep:
    chunks = (Chunk(7, 0, num_tokens, pack_ids([4, 5]), True), *more)
    return SendStep("w0", StepPlan(3, chunks), StepShape(num_tokens, 0, 0, 1, 1))


def test_equal_values_have_no_differences() -> None:
    assert list(differences([a_step(16)], [a_step(16)])) == []


def test_a_difference_is_found_by_the_names_of_fields() -> None:
    assert list(differences([a_step(16)], [a_step(20)], "answer")) == [
        "answer[0].plan.chunks[0].num_tokens: expected 16, got 20",
        "answer[0].shape.num_tokens: expected 16, got 20",
    ]


def test_what_is_only_on_one_side_is_nothing_on_the_other() -> None:
    more = Chunk(8, 0, 1, b"", False)

    assert list(differences([a_step(16)], [a_step(16, more)])) == [
        "[0].plan.chunks[1]: expected nothing, got Chunk(sequence_id=8, num_computed_tokens=0, "
        "num_tokens=1, new_block_ids=ids [], sample=False)"
    ]
    assert list(differences({"a": 1}, {"b": 1}, "state")) == [
        "state['a']: expected 1, got nothing",
        "state['b']: expected nothing, got 1",
    ]


def test_values_of_two_types_are_not_looked_into() -> None:
    assert list(differences([Tick()], [WorkerLost("w")])) == [
        "[0]: expected Tick(), got WorkerLost(worker='w')"
    ]
    assert list(differences(1, 1.0, "x")) == ["x: expected 1, got 1.0"]


def test_of_many_differences_the_first_are_shown() -> None:
    lines = first_differences([0] * 100, [1] * 100)

    assert len(lines) == MAX_SHOWN + 1
    assert lines[0] == "[0]: expected 0, got 1"
    assert lines[-1] == "..."


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (pack_ids(range(100)), "ids [0, 1, 2, 3, ... 100 items]"),
        (b"abc", "<3 bytes>"),
        ((1, 2), "[1, 2]"),
        ("text", "'text'"),
        (None, "None"),
    ],
)
def test_whatever_the_value_it_fits_a_line(value: object, line: str) -> None:
    assert brief(value) == line
