"""A load from a file: JSON lines, one request each.

    {"prompt_tokens": 1500, "output_tokens": 64, "arrival_s": 0.25, "tenant": "a", "priority": 0}

The two counts are required. `arrival_s` counts from the first line and must be on every line or on
none; without it the file gives lengths only.
"""

from collections.abc import Iterable
from typing import Annotated

import msgspec

from common.errors import ConfigError
from common.workload.timeline import RequestShape

MAX_TOKENS = 2**31 - 1

_Tokens = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]


class TraceLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the file."""

    prompt_tokens: _Tokens
    output_tokens: _Tokens
    arrival_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    tenant: str = ""
    priority: int = 0

    @property
    def shape(self) -> RequestShape:
        """The request without its time."""
        return RequestShape(
            num_prompt_tokens=self.prompt_tokens,
            num_output_tokens=self.output_tokens,
            tenant=self.tenant,
            priority=self.priority,
        )


class Trace(msgspec.Struct, frozen=True):
    """What a trace file says."""

    shapes: tuple[RequestShape, ...]
    times_s: tuple[float, ...] | None  #: ascending from the first request's 0; None: lengths only


def parse_trace(lines: Iterable[str]) -> Trace:
    """Read the lines of a trace file; empty ones are skipped.

    Raises:
        ConfigError: a line is no such request, or the file has none; names the line.
    """
    parsed = [_parse_line(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not parsed:
        raise ConfigError("the trace has no requests")
    return Trace(tuple(line.shape for line in parsed), _times(parsed))


def _parse_line(number: int, line: str) -> TraceLine:
    try:
        return msgspec.json.decode(line, type=TraceLine)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"line {number} of the trace: {error}") from None


def _times(lines: list[TraceLine]) -> tuple[float, ...] | None:
    times = [line.arrival_s for line in lines if line.arrival_s is not None]
    if not times:
        return None
    if len(times) != len(lines):
        raise ConfigError(f"{len(times)} of {len(lines)} lines of the trace have an arrival_s")
    if times != sorted(times):
        raise ConfigError("the arrival_s of the trace do not ascend")
    return tuple(time - times[0] for time in times)
