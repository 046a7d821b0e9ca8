"""The scheduler's always-on record: kept in memory, written to a file on a crash or on request.

    kill -USR1 PID    writes what is in the ring; the log says where

Recording never harms serving: what goes wrong with it is logged, and requests go on.
"""

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import structlog

from common.config import SchedulerConfig
from services.scheduler.core import SchedulerCore
from services.scheduler.events import Event, Instruction
from services.scheduler.record_file import default_directory, made_by, write_record
from services.scheduler.recorder import Recorder, RingLimits

ON_CRASH: Final = "crash"
ON_REQUEST: Final = "request"

logger = structlog.get_logger(__name__)


class Recording:
    """The ring of one scheduler process, and its way to disk.

    Args:
        recorder: of the process's core.
        directory: for files.
        scheduler: name of the process in the mesh.
    """

    def __init__(self, recorder: Recorder, directory: Path, scheduler: str) -> None:
        self._recorder = recorder
        self._directory = directory
        self._scheduler = scheduler
        self._made_by = made_by()  # now: files may change under a running process
        self._problem: str | None = None
        self._writing: asyncio.Task[None] | None = None

    @classmethod
    def of(
        cls, config: SchedulerConfig, scheduler: str, core: SchedulerCore, now: float
    ) -> Self | None:
        """What the config asks for; None if it asks for none."""
        if not config.record_bytes or not config.record_seconds:
            return None
        recorder = Recorder(core, RingLimits(config.record_bytes, config.record_seconds), now)
        return cls(recorder, config.record_dir or default_directory(), scheduler)

    def listen(self) -> None:
        """Write a file whenever the process gets SIGUSR1; to be called in the event loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.request)

    def note(self, event: Event, now: float, instructions: Sequence[Instruction]) -> None:
        """Record what the core has just answered."""
        self._recorder.note(event, now, instructions)
        problem = self._recorder.problem
        if problem != self._problem:
            self._problem = problem
            if problem is None:
                logger.info("recording again")
            else:
                logger.warning("not recording", reason=problem)

    def crashed(self, event: Event, now: float, error: Exception) -> None:
        """Write the record of an event that the core could not handle, before anything else."""
        self._recorder.crashed(event, now, error)
        self._write(ON_CRASH, self._recorder.snapshot())

    def request(self) -> None:
        """Write a file beside the running event loop; one at a time."""
        if self._writing is None or self._writing.done():
            parts = self._recorder.snapshot()
            self._writing = asyncio.create_task(asyncio.to_thread(self._write, ON_REQUEST, parts))

    async def close(self) -> None:
        """Wait for a file that is being written."""
        if self._writing is not None:
            await self._writing

    def _write(self, reason: str, parts: list[bytes]) -> None:
        if not parts:
            logger.warning("nothing is recorded", reason=self._recorder.problem)
            return
        try:
            path = write_record(self._directory, self._scheduler, reason, parts, self._made_by)
        except OSError as error:
            logger.exception("record not written", directory=str(self._directory), error=str(error))
        else:
            logger.warning("record written", path=str(path), reason=reason)
