"""The ring keeps the last decisions, whole segments of them, within its limits."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgpack
import msgspec
import pytest

from services.scheduler import checkpoint, record
from services.scheduler.core import SchedulerCore
from services.scheduler.events import Event, OwnerLost, RequestArrived, Tick, WorkerJoined
from services.scheduler.recorder import Recorder, RingLimits
from tests.support.checking_worker import CheckingWorker
from tests.support.scheduler_mesh import a_request, options

ROOMY = RingLimits(max_bytes=10**6, max_seconds=1e6)


@dataclass
class Stage:
    """A core whose every answer is recorded, at times that the test gives."""

    limits: RingLimits = ROOMY
    core: SchedulerCore = field(default_factory=lambda: SchedulerCore(options()))

    def __post_init__(self) -> None:
        self.recorder = Recorder(self.core, self.limits, 0.0)

    def happen(self, event: Event, now: float) -> None:
        self.recorder.note(event, now, self.core.handle(event, now))

    def segments(self) -> list[list[record.Entry]]:
        return [list(entries_of(part)) for part in self.recorder.snapshot()]


def entries_of(part: bytes) -> Iterable[record.Entry]:
    unpacker = msgpack.Unpacker()
    unpacker.feed(part)
    start = 0
    while start < len(part):
        unpacker.skip()
        yield record.decode(part[start : unpacker.tell()])
        start = unpacker.tell()


def test_what_happened_is_kept_with_its_time_and_what_followed_from_it() -> None:
    stage = Stage()
    join = WorkerJoined("w", CheckingWorker().join)
    expected = SchedulerCore(options()).handle(join, 1.5)
    stage.happen(join, 1.5)

    ((state, decided),) = stage.segments()

    assert isinstance(state, record.StateSaved)
    assert checkpoint.load(state.state).num_requests == 0
    assert isinstance(decided, record.Decided)
    assert (decided.now, decided.event) == (1.5, join)
    assert record.decode_instructions(bytes(decided.instructions)) == expected
    assert record.encode_instructions(expected) == bytes(decided.instructions)


def test_a_segment_begins_with_the_state_that_the_one_before_it_leads_to() -> None:
    stage = Stage(RingLimits(max_bytes=10**6, max_seconds=8.0))  # a second per segment
    for number in range(3):
        stage.happen(RequestArrived("o", a_request(f"r{number}", [1, 2])), number * 1.0)

    first, second, third = stage.segments()

    assert (len(first), len(second), len(third)) == (3, 2, 1)
    assert isinstance(second[0], record.StateSaved)
    assert isinstance(third[0], record.StateSaved)
    assert checkpoint.load(second[0].state).num_requests == 2
    assert third[0].state == checkpoint.save(stage.core)


def test_what_is_older_than_the_limit_is_dropped() -> None:
    stage = Stage(RingLimits(max_bytes=10**6, max_seconds=8.0))
    for second in range(100):
        stage.happen(OwnerLost("nobody"), float(second))

    began_at = [first.now for first, *_ in stage.segments() if isinstance(first, record.StateSaved)]

    # What happened at 91, eight seconds before the end, closed the segment that began at 90.
    assert began_at == [90.0, 91.0, 92.0, 93.0, 94.0, 95.0, 96.0, 97.0, 98.0, 99.0]


@pytest.mark.parametrize("max_bytes", [50_000, 100_000, 300_000])
def test_the_ring_never_takes_more_memory_than_it_may(max_bytes: int) -> None:
    stage = Stage(RingLimits(max_bytes=max_bytes, max_seconds=1e6))
    entry_bytes = 1_500  # of the longest entry: an arrival with a prompt of 300 tokens
    sizes = []
    for number in range(400):
        arrival = RequestArrived("o", a_request(f"r{number % 5}", [1] * (number % 300 + 1)))
        stage.happen(arrival, float(number))
        sizes.append(stage.recorder.num_bytes)

    assert stage.recorder.problem is None
    assert max(sizes) <= max_bytes + entry_bytes
    assert min(sizes[-200:]) >= max_bytes / 4  # and it uses what it has


def test_a_state_too_large_for_the_ring_stops_recording_until_it_fits() -> None:
    stage = Stage(RingLimits(max_bytes=20_000, max_seconds=8.0))
    stage.happen(RequestArrived("o", a_request("long", [1] * 3000)), 1.0)  # 12,000 bytes of 20,000

    assert stage.segments() == []
    assert "more than a 4th of the 20000 bytes" in str(stage.recorder.problem)

    stage.happen(OwnerLost("o"), 1.5)
    assert "a 4th" in str(stage.recorder.problem)  # it looks again a segment's time later
    stage.happen(Tick(), 2.0)
    assert stage.recorder.problem is None
    stage.happen(Tick(), 2.5)
    assert [len(segment) for segment in stage.segments()] == [2]


def test_when_nobody_waits_a_half_full_segment_is_closed() -> None:
    stage = Stage(RingLimits(max_bytes=10**6, max_seconds=80.0))  # ten seconds per segment
    stage.happen(OwnerLost("nobody"), 0.0)
    stage.happen(Tick(), 4.9)
    assert len(stage.segments()) == 1
    stage.happen(Tick(), 5.0)
    assert len(stage.segments()) == 2


def test_a_scheduler_that_is_left_alone_makes_no_copies_of_itself() -> None:
    stage = Stage(RingLimits(max_bytes=10**6, max_seconds=8.0))
    for second in range(1000):
        stage.happen(Tick(), float(second))

    assert len(stage.segments()) == 1


def test_an_idle_month_fits_the_ring() -> None:
    stage = Stage(RingLimits(max_bytes=20_000, max_seconds=8.0))
    for second in range(20_000):
        stage.happen(Tick(), float(second))

    assert stage.recorder.num_bytes <= 20_000


def test_the_event_that_the_core_could_not_handle_comes_last() -> None:
    stage = Stage()
    stage.happen(Tick(), 1.0)
    stage.recorder.crashed(OwnerLost("o"), 2.0, ValueError("bad"))

    ((_, _, crash),) = stage.segments()
    assert crash == record.Crashed(2.0, OwnerLost("o"), "ValueError: bad")


def test_entries_are_plain_messagepack_for_other_tools() -> None:
    stage = Stage()
    stage.happen(Tick(), 1.0)

    unpacker = msgpack.Unpacker()
    for part in stage.recorder.snapshot():
        unpacker.feed(part)
    assert [entry[0] for entry in unpacker] == [141, 142]
    assert msgspec.msgpack.decode(record.encode(record.Header(1, "m", "s", "r", "t"))) == [
        140,
        1,
        "m",
        "s",
        "r",
        "t",
    ]
