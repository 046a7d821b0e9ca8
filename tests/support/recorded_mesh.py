"""A scheduler mesh whose core is recorded, for tests of what can be done with a record."""

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from services.scheduler import checkpoint, record
from services.scheduler.events import Event, Instruction
from services.scheduler.record_file import read_record, write_record
from tests.support.scheduler_mesh import SchedulerMesh


@dataclass
class RecordedMesh(SchedulerMesh):
    """`entries` is the record, without a header; `save_state` adds a copy of the state to it."""

    entries: list[record.Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.save_state()

    def save_state(self) -> None:
        self.entries.append(record.StateSaved(self.now, checkpoint.save(self.core)))

    def handle(self, event: Event) -> list[Instruction]:
        instructions = super().handle(event)
        encoded = msgspec.Raw(record.encode_instructions(instructions))
        # Through bytes and back, as through a file.
        entry = record.decode(record.encode(record.Decided(self.now, event, encoded)))
        self.entries.append(entry)
        return instructions

    def write(self, directory: Path) -> Path:
        """The record as a file that `read_record` reads."""
        parts = [record.encode(entry) for entry in self.entries]
        path = write_record(directory, "scheduler-0", "request", parts, "test")
        assert list(read_record(path))[1:] == self.entries
        return path
