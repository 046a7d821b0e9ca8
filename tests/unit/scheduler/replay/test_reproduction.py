"""A record reproduces, or the first thing that does not is said."""

from typing import Any

import msgspec
import pytest

from common.errors import RecordError
from common.messages import SampledToken
from services.scheduler import checkpoint, record
from services.scheduler.core import SchedulerCore
from services.scheduler.events import OwnerLost, StepFinished, Tick
from services.scheduler.replay.reproduction import reproduce
from tests.support.checking_worker import CheckingWorker
from tests.support.recorded_mesh import RecordedMesh
from tests.support.scheduler_mesh import a_request, options


def a_mesh() -> RecordedMesh:
    """Two workers, a lost one among them, a cancel, and states on the way."""
    mesh = RecordedMesh()
    mesh.join("w0")
    mesh.join("w1", CheckingWorker(num_blocks=16))
    for number in range(6):
        mesh.arrive(a_request(f"r{number}", [1, 2, 3, number], max_tokens=9, eos=True))
    mesh.run_step("w0")
    mesh.save_state()
    mesh.cancel("r1")
    mesh.lose("w1")
    mesh.run_until_idle()
    mesh.save_state()
    return mesh


def test_every_decision_and_every_state_on_the_way_comes_out_alike() -> None:
    mesh = a_mesh()

    result = reproduce(mesh.entries)

    assert result.divergence is None
    assert result.num_decisions == len(mesh.entries) - 3  # three of them are states
    assert result.num_states == 2  # behind the first
    assert result.num_steps >= len(mesh.sent)
    assert (result.began_at, result.ended_at) == (0.0, mesh.now)


def test_a_replay_may_begin_at_any_state() -> None:
    mesh = a_mesh()
    states = [i for i, entry in enumerate(mesh.entries) if isinstance(entry, record.StateSaved)]

    assert [reproduce(mesh.entries[start:]).divergence for start in states] == [None] * 3


def altered(mesh: RecordedMesh, index: int, **fields: Any) -> list[record.Entry]:
    entries = list(mesh.entries)
    entries[index] = msgspec.structs.replace(entries[index], **fields)
    return entries


def test_the_first_decision_that_differs_is_named_with_its_event() -> None:
    mesh = a_mesh()
    index = next(
        i
        for i, entry in enumerate(mesh.entries)
        if isinstance(entry, record.Decided) and isinstance(entry.event, StepFinished)
    )
    entry = mesh.entries[index]
    assert isinstance(entry, record.Decided)
    assert isinstance(entry.event, StepFinished)
    result = entry.event.result
    (first, *rest) = result.sampled
    other = SampledToken(first.sequence_id, first.token_id + 1)
    event = StepFinished(
        entry.event.worker, msgspec.structs.replace(result, sampled=(other, *rest))
    )

    divergence = reproduce(altered(mesh, index, event=event)).divergence

    assert divergence is not None
    assert divergence.number == index - 1  # behind the first state
    assert divergence.event == event
    line = divergence.differences[0]
    assert ".message.deltas[0].token_ids: expected ids [" in line


def test_an_answer_that_is_an_error_instead_differs() -> None:
    mesh = a_mesh()
    core = SchedulerCore(options())
    core._planner = None  # type: ignore[assignment]  # so that it cannot plan
    entries = [record.StateSaved(0.0, checkpoint.save(core)), *mesh.entries[1:]]

    divergence = reproduce(entries).divergence

    assert divergence is not None
    assert divergence.number == 0
    assert divergence.differences[0].startswith("expected an answer, got AttributeError")


def test_a_state_that_differs_is_found_although_all_answers_are_alike() -> None:
    mesh = RecordedMesh()
    mesh.handle(Tick())
    mesh.core._stats.num_failed = 5  # no answer tells
    mesh.save_state()

    divergence = reproduce(mesh.entries).divergence

    assert divergence is not None
    assert (divergence.number, divergence.event) == (1, None)
    assert divergence.differences == ["state['_stats']['num_failed']: expected 5, got 0"]


def test_a_record_that_ends_in_a_crash_reproduces_when_it_crashes_alike() -> None:
    mesh = RecordedMesh()
    mesh.join("w0")
    mesh.core._planner = None  # type: ignore[assignment]
    mesh.save_state()
    error = "AttributeError: 'NoneType' object has no attribute 'plan'"
    entries = [mesh.entries[-1], record.Crashed(2.0, OwnerLost("o"), error)]

    result = reproduce(entries)

    assert result.divergence is None
    assert result.crash == error


def test_a_crash_that_does_not_happen_again_is_a_difference() -> None:
    mesh = RecordedMesh()
    entries = [*mesh.entries, record.Crashed(1.0, Tick(), "ValueError: bad")]

    divergence = reproduce(entries).divergence

    assert divergence is not None
    assert divergence.differences == ["expected ValueError: bad, got an answer of 0 instructions"]


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [record.Crashed(1.0, Tick(), "")],
        [*RecordedMesh().entries, record.Header(1, "", "", "", "")],
    ],
    ids=["empty", "no state", "a header in the middle"],
)
def test_what_is_no_record_is_refused(entries: list[record.Entry]) -> None:
    with pytest.raises(RecordError):
        reproduce(entries)
