"""What a record of the scheduler consists of: a stream of entries, each a MessagePack array.

    Header, then segments: StateSaved, Decided, Decided, ...    and at the very end perhaps Crashed

Every segment can be replayed without the ones before it: its first entry is the core's state at
that moment. Prompts are in here as token ids: a record is as private as the conversations in it.
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

from services.scheduler.events import Event, Instruction

FORMAT: Final = 1  # raised with every change that an older reader would misread


class _Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of entries; tags are never reused, fields only appended, with a default."""


class Header(_Entry, frozen=True, tag=140):
    """First of a file."""

    format: int
    made_by: str  # version and digest of the code that decided
    scheduler: str  # its name in the mesh
    reason: str  # why it was written
    written_at: str  # ISO 8601, UTC


class StateSaved(_Entry, frozen=True, tag=141):
    """The core between two events: where a replay can begin, and what it must come to."""

    now: float  # seconds on the core's clock
    state: bytes  # see `services.scheduler.checkpoint`


class Decided(_Entry, frozen=True, tag=142):
    """One call of `SchedulerCore.handle`."""

    now: float  # seconds on the core's clock
    event: Event
    #: a list of `Instruction`, left encoded: replay compares bytes, and seldom has to look inside
    instructions: msgspec.Raw


class Crashed(_Entry, frozen=True, tag=143):
    """The call that raised."""

    now: float
    event: Event
    error: str  # type and message


Entry: TypeAlias = Header | StateSaved | Decided | Crashed

_encoder = msgspec.msgpack.Encoder()
_entry_decoder: msgspec.msgpack.Decoder[Entry] = msgspec.msgpack.Decoder(Entry)
_instructions_decoder: msgspec.msgpack.Decoder[list[Instruction]] = msgspec.msgpack.Decoder(
    list[Instruction]
)

encode = _encoder.encode  #: an entry as bytes
append_to = _encoder.encode_into  #: (entry, bytearray, offset): the same, behind what is there
decode = _entry_decoder.decode  #: the inverse of `encode`; raises msgspec.DecodeError


def encode_instructions(instructions: Sequence[Instruction]) -> bytes:
    """As in `Decided`: equal instructions give equal bytes."""
    return _encoder.encode(instructions)


def decode_instructions(data: bytes) -> list[Instruction]:
    """The inverse of `encode_instructions`."""
    return _instructions_decoder.decode(data)


def describe_error(error: Exception) -> str:
    """As in `Crashed`."""
    return f"{type(error).__name__}: {error}"
