"""A core that is saved and loaded is the same core; what is not known is refused."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import RecordError
from services.scheduler import checkpoint
from services.scheduler.core import SchedulerCore
from services.scheduler.events import Event, RequestArrived, Tick, WorkerJoined
from services.scheduler.request import Request
from tests.support.checking_worker import CheckingWorker
from tests.support.scheduler_mesh import SchedulerMesh, a_request, options


def a_busy_mesh() -> SchedulerMesh:
    """Two workers with steps in flight, prompts that share blocks, and requests that wait."""
    mesh = SchedulerMesh(options(max_num_seqs=2))
    mesh.join("w0")
    mesh.join("w1", CheckingWorker(block_size=3))
    for number in range(8):
        mesh.arrive(a_request(f"r{number}", [1, 2, 3, 4, 5, 6, 7, 8, number], max_tokens=20))
    for _ in range(5):
        mesh.run_step("w0")
        mesh.run_step("w1")
    return mesh


WHOLE = checkpoint.save(a_busy_mesh().core)


def answers(core: SchedulerCore, events: list[Event]) -> list[object]:
    return [core.handle(event, 100.0 + number) for number, event in enumerate(events)]


def test_a_loaded_core_answers_as_the_saved_one() -> None:
    mesh = a_busy_mesh()
    loaded = checkpoint.load(checkpoint.save(mesh.core))
    events: list[Event] = [
        Tick(),
        RequestArrived("o", a_request("late", [1, 2, 3, 4, 5, 6, 7, 8, 9], max_tokens=3)),
        WorkerJoined("w2", CheckingWorker().join),
    ]

    loaded.check()
    assert answers(loaded, events) == answers(mesh.core, events)
    assert loaded.stats == mesh.core.stats


def test_saving_what_was_loaded_gives_the_same_bytes() -> None:
    data = checkpoint.save(a_busy_mesh().core)

    assert checkpoint.save(checkpoint.load(data)) == data


def test_saving_changes_nothing() -> None:
    mesh = a_busy_mesh()
    before = checkpoint.save(mesh.core)
    checkpoint.save(mesh.core)

    assert checkpoint.save(mesh.core) == before


def test_reading_a_core_changes_nothing() -> None:
    """What a shell looks at between events must not be missed when its record is replayed."""
    core = a_busy_mesh().core
    before = checkpoint.save(core)

    assert core.stats.num_running > 0
    assert core.stats is not core.stats
    core.time_account.by_tenant.keys()
    list(core.requests())

    assert checkpoint.save(core) == before


def test_a_request_that_a_step_in_flight_and_its_worker_hold_is_one_request() -> None:
    loaded = checkpoint.load(checkpoint.save(a_busy_mesh().core))
    (replica, _) = loaded.replicas
    running = {id(request) for request in replica.running()}
    in_flight = {id(request) for step in replica.in_flight for _, request in step.sequences()}

    assert in_flight
    assert in_flight <= running <= {id(request) for request in loaded.requests()}


@dataclass
class Stranger:
    number: int


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Stranger(1), "Stranger is not listed in checkpoint.py"),
        (1j, "complex is not listed"),
        (print, "builtin_function_or_method is not listed"),
        ({(1, 2)}, "a set holds more than numbers and strings"),
        (2**64, "serialize ints"),
    ],
    ids=["class", "number", "function", "set of tuples", "too large"],
)
def test_what_could_not_be_restored_is_refused_when_it_is_saved(value: object, reason: str) -> None:
    core = a_busy_mesh().core
    core._options = value  # type: ignore[assignment]

    with pytest.raises(RecordError, match=reason):
        checkpoint.save(core)


def test_a_list_with_two_holders_is_refused_since_it_would_come_apart() -> None:
    core = a_busy_mesh().core
    first, second, *_ = core.requests()
    first.block_table = second.block_table

    with pytest.raises(RecordError, match="two objects share a list"):
        checkpoint.save(core)


def test_a_state_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    core = a_busy_mesh().core
    size = len(checkpoint.save(core))
    monkeypatch.setattr(checkpoint, "MAX_CHECKPOINT_BYTES", size - 1)

    with pytest.raises(RecordError, match=f"takes {size} bytes, at most {size - 1}"):
        checkpoint.save(core)


def changed(change: Callable[[list[list[str]]], None]) -> bytes:
    """A checkpoint with other layouts."""
    number, layouts, root = msgspec.msgpack.decode(checkpoint.save(a_busy_mesh().core))
    change(layouts)
    return msgspec.msgpack.encode([number, layouts, root])


def rename_field(layouts: list[list[str]]) -> None:
    (layout,) = [layout for layout in layouts if layout[0] == Request.__name__]
    layout[layout.index("request_id")] = "identifier"


def rename_class(layouts: list[list[str]]) -> None:
    layouts[0][0] = "Popen"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a checkpoint"),
        (b"\xc1", "not a checkpoint"),
        (msgspec.msgpack.encode([99, [], None]), f"of format 99; this is {checkpoint.FORMAT}"),
        (msgspec.msgpack.encode([checkpoint.FORMAT, [], 7]), "holds a int, no scheduler"),
        (msgspec.msgpack.encode([checkpoint.FORMAT, [], [0, 5]]), "not a checkpoint"),
        (msgspec.msgpack.encode([checkpoint.FORMAT, [], [77]]), "not a checkpoint"),
        (changed(rename_field), "Request has other fields: .*identifier"),
        (changed(rename_class), "Popen"),
        (checkpoint.save(a_busy_mesh().core)[:-1], "not a checkpoint"),
    ],
    ids=[
        "empty",
        "not MessagePack",
        "another format",
        "a number",
        "no such layout",
        "no such kind",
        "another version's field",
        "a class that is none of ours",
        "cut short",
    ],
)
def test_what_is_no_checkpoint_of_this_version_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        checkpoint.load(data)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_are_refused_or_make_some_core_and_nothing_else(data: st.DataObject) -> None:
    damaged = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(WHOLE) - 1))] = data.draw(st.integers(0, 255))

    try:
        core = checkpoint.load(bytes(damaged))
    except RecordError:
        return
    assert isinstance(core, SchedulerCore)
