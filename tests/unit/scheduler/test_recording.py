"""The scheduler's shell records what its core does, and writes it down when it matters."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from common.config import SchedulerConfig, load_config
from common.link import Peer
from services.scheduler import record
from services.scheduler.core import SchedulerCore
from services.scheduler.events import OwnerLost, Tick, WorkerJoined
from services.scheduler.record_file import read_record
from services.scheduler.recording import Recording
from services.scheduler.service import SchedulerService
from tests.support.checking_worker import CheckingWorker
from tests.support.in_loop import in_loop
from tests.support.memory_link import MemoryLink
from tests.support.scheduler_mesh import options

IDENTITY = Peer("scheduler", "scheduler-7", "s7")
WORKER = Peer("worker", "worker-0", "w0")


def a_config(directory: Path, *flags: str) -> SchedulerConfig:
    return load_config(SchedulerConfig, ["--record-dir", str(directory), *flags])


def entries_in(directory: Path) -> list[record.Entry]:
    (path,) = directory.iterdir()
    return list(read_record(path))


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[tuple[SchedulerService, MemoryLink]]:
    link = MemoryLink()
    service = SchedulerService(a_config(directory), IDENTITY, make_link=lambda: link)
    await service.start()
    task = asyncio.create_task(service.run())
    try:
        yield service, link
    finally:
        task.cancel()
        await asyncio.wait({task})
        await service.stop("test over")


@in_loop()
async def test_on_sigusr1_it_writes_what_has_happened(tmp_path: Path) -> None:
    join = CheckingWorker().join
    async with running(tmp_path) as (service, link):
        link.peer_up(WORKER)
        link.deliver(WORKER, join)
        while not service.is_ready:  # noqa: ASYNC110  the shell has no event for it
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGUSR1)
        while not list(tmp_path.glob("*.record")):  # noqa: ASYNC110, ASYNC240  nor has a directory
            await asyncio.sleep(0.001)

    header, state, decided = entries_in(tmp_path)
    assert isinstance(header, record.Header)
    assert (header.scheduler, header.reason) == ("scheduler-7", "request")
    assert isinstance(state, record.StateSaved)
    assert isinstance(decided, record.Decided)
    assert decided.event == WorkerJoined("w0", join)


@in_loop()
async def test_a_core_that_raises_leaves_a_record_that_ends_with_the_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: SchedulerCore, event: object, now: float) -> None:
        raise AssertionError("two requests in one place")

    async with running(tmp_path) as (service, _):
        service.feed(Tick())
        monkeypatch.setattr(SchedulerCore, "handle", fail)
        with pytest.raises(AssertionError, match="two requests in one place"):
            service.feed(OwnerLost("o"))

    *_, decided, crash = entries_in(tmp_path)
    assert isinstance(decided, record.Decided)
    assert isinstance(crash, record.Crashed)
    assert crash.event == OwnerLost("o")
    assert crash.error == "AssertionError: two requests in one place"


@pytest.mark.parametrize("flag", ["--record-bytes", "--record-seconds"])
def test_with_a_limit_of_zero_nothing_is_recorded(tmp_path: Path, flag: str) -> None:
    config = a_config(tmp_path, flag, "0")

    assert Recording.of(config, "s", SchedulerCore(options()), 0.0) is None


@in_loop()
async def test_a_record_that_cannot_be_written_harms_nobody(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_bytes(b"")
    recording = Recording.of(a_config(taken), "s", SchedulerCore(options()), 0.0)
    assert recording is not None

    recording.request()
    await recording.close()

    assert taken.read_bytes() == b""


def test_what_cannot_be_recorded_is_no_reason_to_stop_and_leaves_no_file(tmp_path: Path) -> None:
    core = SchedulerCore(options())
    core._options = object()  # type: ignore[assignment]  # nothing that a checkpoint knows
    recording = Recording.of(a_config(tmp_path), "s", core, 0.0)
    assert recording is not None

    recording.note(Tick(), 1.0, [])
    recording.crashed(Tick(), 2.0, ValueError("bad"))

    assert list(tmp_path.iterdir()) == []
