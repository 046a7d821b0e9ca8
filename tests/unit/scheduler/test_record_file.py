"""Records on disk: private, whole, few; and read only if they are what they should be."""

import os
from pathlib import Path

import pytest

from common.errors import RecordError
from services.scheduler import checkpoint, record
from services.scheduler.core import SchedulerCore
from services.scheduler.events import Tick
from services.scheduler.record_file import (
    MAX_FILES,
    default_directory,
    made_by,
    read_record,
    write_record,
)
from services.scheduler.recorder import Recorder, RingLimits
from tests.support.scheduler_mesh import options


def a_recorder() -> Recorder:
    """Of a core to which three ticks have happened."""
    core = SchedulerCore(options())
    recorder = Recorder(core, RingLimits(10**6, 100.0), 0.0)
    for now in (1.0, 2.0, 3.0):
        recorder.note(Tick(), now, core.handle(Tick(), now))
    return recorder


def write(directory: Path) -> Path:
    return write_record(directory, "scheduler-0", "request", a_recorder().snapshot(), "us")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    header, state, *rest = read_record(write(tmp_path))

    assert isinstance(header, record.Header)
    assert (header.made_by, header.scheduler, header.reason) == ("us", "scheduler-0", "request")
    assert isinstance(state, record.StateSaved)
    assert checkpoint.load(state.state).num_requests == 0
    assert [entry.now for entry in rest if isinstance(entry, record.Decided)] == [1.0, 2.0, 3.0]


def test_only_its_owner_can_read_a_record(tmp_path: Path) -> None:
    path = write(tmp_path / "made" / "for it")

    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_nothing_is_left_of_a_record_that_could_not_be_written(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_bytes(b"")

    with pytest.raises(OSError, match="exists"):
        write(taken)
    assert list(tmp_path.iterdir()) == [taken]


def test_only_the_latest_records_are_kept_and_other_files_left_alone(tmp_path: Path) -> None:
    others = [tmp_path / "notes.txt", tmp_path / "the-crash-of-monday.record"]
    for other in others:
        other.write_text("mine")
        os.utime(other, (0, 0))
    paths = []
    for second in range(MAX_FILES + 3):
        path = write(tmp_path)
        os.utime(path, (second, second))
        paths.append(path)

    # The last one was written when its predecessors were older than it, as files are.
    assert sorted(tmp_path.iterdir()) == sorted([*paths[3:], *others])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "does not begin like a record"),
        (b"hello", "is no record, or is damaged"),
        (record.encode(record.Header(2, "", "", "", "")), "of format 2; this version reads 1"),
        (record.encode(record.Header(1, "", "", "", "")), "has no state to begin with"),
        (record.encode(record.StateSaved(0.0, b"")), "does not begin like a record"),
    ],
    ids=["empty", "text", "another format", "header alone", "no header"],
)
def test_what_is_no_record_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)

    with pytest.raises(RecordError, match=reason):
        list(read_record(path))


def test_a_record_that_is_cut_short_is_refused_after_what_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    entries = read_record(path)

    assert [type(next(entries)) for _ in range(4)] == [
        record.Header,
        record.StateSaved,
        record.Decided,
        record.Decided,
    ]
    with pytest.raises(RecordError, match="damaged"):
        next(entries)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot read .*missing: No such file"):
        list(read_record(tmp_path / "missing"))


def test_the_default_directory_is_where_state_belongs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "splitfuse" / "records"
    monkeypatch.setenv("XDG_STATE_HOME", "")
    assert default_directory() == Path.home() / ".local" / "state" / "splitfuse" / "records"


def test_the_code_is_told_apart_by_its_digest() -> None:
    assert made_by() == made_by()
    assert "code " in made_by()
