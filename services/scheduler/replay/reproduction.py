"""Feeding a record to the core again: every decision must come out as it was, bit for bit."""

from collections.abc import Iterable
from dataclasses import dataclass

from common.errors import RecordError
from services.scheduler import checkpoint, record
from services.scheduler.core import SchedulerCore
from services.scheduler.events import Event, SendStep
from services.scheduler.replay.differences import first_differences


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first thing that came out otherwise."""

    number: int  #: decisions before it that came out alike
    now: float  #: seconds on the recorded clock
    event: Event | None  #: None: all decisions were alike, but then the state was not
    differences: list[str]  #: one line each


@dataclass(slots=True)
class Reproduction:
    """What replaying a record has shown."""

    began_at: float  #: seconds on the recorded clock
    ended_at: float
    num_decisions: int = 0  #: that came out alike
    num_steps: int = 0  #: sent in them
    num_states: int = 0  #: checkpoints on the way that the core's state was equal to
    crash: str | None = None  #: the error that the record ends with, raised again
    divergence: Divergence | None = None


def reproduce(entries: Iterable[record.Entry]) -> Reproduction:
    """Decide everything again, up to the first difference.

    Args:
        entries: of a record, without its header.

    Raises:
        RecordError: they do not begin with a state that this version can load.
    """
    remaining = iter(entries)
    first = next(remaining, None)
    if not isinstance(first, record.StateSaved):
        raise RecordError("the record has no state to begin with")
    core = checkpoint.load(first.state)
    result = Reproduction(first.now, first.now)
    for entry in remaining:
        if isinstance(entry, record.Header):
            raise RecordError("a record begins in the middle of another")
        result.ended_at = entry.now
        result.divergence = _replay(core, entry, result)
        if result.divergence is not None:
            break
    return result


def _replay(
    core: SchedulerCore,
    entry: record.Decided | record.StateSaved | record.Crashed,
    result: Reproduction,
) -> Divergence | None:
    match entry:
        case record.Decided():
            return _decide(core, entry, result)
        case record.StateSaved():
            return _compare_states(core, entry, result)
        case record.Crashed():
            return _crash(core, entry, result)


def _decide(core: SchedulerCore, entry: record.Decided, result: Reproduction) -> Divergence | None:
    expected = bytes(entry.instructions)
    try:
        instructions = core.handle(entry.event, entry.now)
    except Exception as error:  # noqa: BLE001  whatever it is, it was not raised then
        lines = [f"expected an answer, got {record.describe_error(error)}"]
        return Divergence(result.num_decisions, entry.now, entry.event, lines)
    if record.encode_instructions(instructions) != expected:
        lines = first_differences(record.decode_instructions(expected), instructions, "answer")
        # Equal values may differ in their bytes: -0.0 and 0.0 do.
        lines = lines or ["the values are equal, their bytes are not"]
        return Divergence(result.num_decisions, entry.now, entry.event, lines)
    result.num_decisions += 1
    result.num_steps += sum(type(instruction) is SendStep for instruction in instructions)
    return None


def _compare_states(
    core: SchedulerCore, entry: record.StateSaved, result: Reproduction
) -> Divergence | None:
    state = checkpoint.save(core)
    if state != entry.state:
        lines = first_differences(
            checkpoint.describe(entry.state), checkpoint.describe(state), "state"
        )
        return Divergence(result.num_decisions, entry.now, None, lines)
    result.num_states += 1
    return None


def _crash(core: SchedulerCore, entry: record.Crashed, result: Reproduction) -> Divergence | None:
    try:
        instructions = core.handle(entry.event, entry.now)
    except Exception as error:  # noqa: BLE001  that is what is expected
        result.crash = record.describe_error(error)
        if result.crash == entry.error:
            return None
        lines = [f"expected {entry.error}, got {result.crash}"]
    else:
        lines = [f"expected {entry.error}, got an answer of {len(instructions)} instructions"]
    return Divergence(result.num_decisions, entry.now, entry.event, lines)
