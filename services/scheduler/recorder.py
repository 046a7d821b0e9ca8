"""The always-on ring: what the core was told and what it answered, over the last minutes.

The ring is a queue of segments, each of which begins with a copy of the core's state, so that the
oldest one can be dropped. A copy takes milliseconds, during which no step is planned: it is made
when the scheduler has nothing to do, if that happens in time, and else when a segment is full.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from common.errors import RecordError
from services.scheduler import checkpoint, record
from services.scheduler.core import SchedulerCore
from services.scheduler.events import Event, Instruction, Tick

SEGMENTS: Final = 8  # that the ring is cut into: an eighth of it is dropped at a time
MAX_STATE_SHARE: Final = 4  # a state that takes more than this part of the ring is not recorded


@dataclass(frozen=True, slots=True)
class RingLimits:
    """What is kept; the smaller one counts. Both > 0."""

    max_bytes: int
    max_seconds: float


@dataclass(slots=True)
class _Segment:
    began_at: float  #: seconds on the core's clock
    num_state_bytes: int  #: of its first entry
    data: bytearray = field(repr=False)  #: entries
    is_idle: bool = True  #: nothing but time has passed


class Recorder:
    """Keeps what happens to one core.

    Args:
        core: is only read.
        limits: of the ring.
        now: seconds on the core's clock.
    """

    def __init__(self, core: SchedulerCore, limits: RingLimits, now: float) -> None:
        self._core = core
        self._limits = limits
        self._max_segment_bytes = limits.max_bytes // SEGMENTS
        self._max_segment_seconds = limits.max_seconds / SEGMENTS
        self._segments: deque[_Segment] = deque()  #: oldest first; empty while it cannot record
        self._retry_at = now
        #: why nothing is recorded at the moment; None if it is
        self.problem: str | None = None
        self._begin_segment(now)

    @property
    def num_bytes(self) -> int:
        """Bytes in the ring."""
        return sum(len(segment.data) for segment in self._segments)

    def note(self, event: Event, now: float, instructions: Sequence[Instruction]) -> None:
        """Record what the core has just answered; to be called after every event."""
        if not self._segments:
            if now >= self._retry_at:
                self._begin_segment(now)
            return
        segment = self._segments[-1]
        encoded = msgspec.Raw(record.encode_instructions(instructions))
        record.append_to(record.Decided(now, event, encoded), segment.data, -1)
        is_tick = type(event) is Tick
        segment.is_idle = segment.is_idle and is_tick
        if self._is_due(segment, now, is_tick and not self._core.num_requests):
            self._begin_segment(now)

    def crashed(self, event: Event, now: float, error: Exception) -> None:
        """Record what the core could not handle; nothing comes after it."""
        if self._segments:
            entry = record.Crashed(now, event, record.describe_error(error))
            record.append_to(entry, self._segments[-1].data, -1)

    def snapshot(self) -> list[bytes]:
        """All there is, oldest first."""
        return [bytes(segment.data) for segment in self._segments]

    def _is_due(self, segment: _Segment, now: float, idle: bool) -> bool:
        """Whether to copy the state now: the segment is full, or half full and nobody waits."""
        share = 2 if idle else 1
        num_bytes = share * (len(segment.data) - segment.num_state_bytes)
        if num_bytes >= self._full_bytes(segment):
            return True
        # A scheduler that is left alone makes no copies of itself.
        seconds = share * (now - segment.began_at)
        return seconds >= self._max_segment_seconds and not segment.is_idle

    def _full_bytes(self, segment: _Segment) -> int:
        """Bytes beside its state that a segment may have: states take half of the ring at most."""
        return max(self._max_segment_bytes, segment.num_state_bytes)

    def _begin_segment(self, now: float) -> None:
        try:
            state = checkpoint.save(self._core)
            if len(state) > self._limits.max_bytes // MAX_STATE_SHARE:
                raise RecordError(
                    f"the scheduler's state takes {len(state)} bytes, more than a "
                    f"{MAX_STATE_SHARE}th of the {self._limits.max_bytes} bytes for recording"
                )
        except RecordError as error:
            self.problem = str(error)
            self._segments.clear()  # what follows would not join on
            self._retry_at = now + self._max_segment_seconds
            return
        self.problem = None
        data = bytearray(record.encode(record.StateSaved(now, state)))
        self._segments.append(_Segment(now, len(data), data))
        self._drop_old(now)

    def _drop_old(self, now: float) -> None:
        """Drop segments that end before the time to keep, and what is too much."""
        segments, limits = self._segments, self._limits
        growth = self._full_bytes(segments[-1])  # that it may yet have
        while len(segments) > 1 and (
            segments[1].began_at < now - limits.max_seconds
            or self.num_bytes + growth > limits.max_bytes
        ):
            segments.popleft()
