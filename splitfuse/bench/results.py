"""Result files of `splitfuse bench`: JSON with every timeline, for questions that come up later.

A file is written again after each load, whole and atomically: a run that is interrupted leaves what
it had measured.
"""

import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import msgspec

from common.errors import ConfigError
from common.workload.measures import Sla, Summary, summarize
from common.workload.timeline import RequestShape, Timeline
from splitfuse.bench.machine import Machine, this_machine
from splitfuse.bench.processor import ProcessorShares

FORMAT = "splitfuse bench 1"
_KEY_FLAG = "--api-key"
VERSIONED = ("splitfuse", "torch", "uvloop")  # distributions whose version a result depends on


class CompactTimeline(msgspec.Struct, array_like=True, frozen=True):
    """A `Timeline` in integers; times in microseconds."""

    num_prompt_tokens: int
    num_asked_tokens: int
    num_output_tokens: int
    sent_us: int  #: from the first request of the load
    gaps_us: list[int]  #: the first counts from `sent_us`, each other from the piece before
    failure: str | None = None
    tenant: str = ""
    priority: int = 0

    @classmethod
    def of(cls, timeline: Timeline, origin_s: float) -> Self:
        """`timeline` counted from `origin_s`."""
        at = [_us(when - origin_s) for when in (timeline.sent_at, *timeline.token_at)]
        return cls(
            num_prompt_tokens=timeline.shape.num_prompt_tokens,
            num_asked_tokens=timeline.shape.num_output_tokens,
            num_output_tokens=timeline.num_output_tokens,
            sent_us=at[0],
            gaps_us=[after - before for before, after in pairwise(at)],
            failure=timeline.failure,
            tenant=timeline.shape.tenant,
            priority=timeline.shape.priority,
        )

    def timeline(self) -> Timeline:
        """The timeline again, to the microsecond."""
        shape = RequestShape(
            self.num_prompt_tokens, self.num_asked_tokens, self.tenant, self.priority
        )
        at_us = self.sent_us
        token_at = []
        for gap_us in self.gaps_us:
            at_us += gap_us
            token_at.append(at_us / 1e6)
        return Timeline(shape, self.sent_us / 1e6, token_at, self.num_output_tokens, self.failure)


class Run(msgspec.Struct):
    """One load on one server."""

    label: str  #: of the server: a policy, a variant, or its URL
    round_number: int  #: from 1
    num_clients: int | None  #: at once; None: the load was open
    timelines: list[CompactTimeline]
    num_workers: int | None = None  #: of the server; None if it is not ours
    processor: ProcessorShares | None = None
    interrupted: bool = False  #: it has only the requests that had ended by then
    summary: Summary | None = None

    def summarize(self, slas: Sequence[Sla]) -> Summary:
        """Its numbers under these SLAs; `summary` is set to them."""
        timelines = [timeline.timeline() for timeline in self.timelines]
        self.summary = summarize(timelines, slas, self.num_clients)
        return self.summary

    @property
    def short_share(self) -> float:
        """Share of finished requests whose output is shorter than was asked for, 0..1."""
        ended = [t for t in self.timelines if t.failure is None]
        return sum(t.num_output_tokens < t.num_asked_tokens for t in ended) / max(len(ended), 1)


Group = tuple[str, int | None, int | None]  # label, workers, clients


class Results(msgspec.Struct):
    """A result file."""

    verb: str  #: serve | sweep | replicas
    command: list[str]
    date: str  #: ISO 8601, UTC
    machine: Machine
    versions: dict[str, str]
    options: dict[str, Any]
    slas: list[Sla]
    servers: dict[str, list[str]]  #: flags of each label's server; empty if it is not ours
    runs: list[Run]
    format: str = FORMAT

    def summarize(self, slas: Sequence[Sla]) -> None:
        """Count goodput under other SLAs."""
        self.slas = list(slas)
        for run in self.runs:
            run.summarize(slas)

    def groups(self) -> dict[Group, list[Run]]:
        """Runs of all rounds, rounds ascending; groups by server, then workers, then clients."""
        order = {label: index for index, label in enumerate(self.servers)}

        def place(run: Run) -> tuple[int, int, int, int]:
            index = order.get(run.label, len(order))
            return index, run.num_workers or 0, run.num_clients or 0, run.round_number

        groups: dict[Group, list[Run]] = {}
        for run in sorted(self.runs, key=place):
            groups.setdefault((run.label, run.num_workers, run.num_clients), []).append(run)
        return groups


def new_results(
    verb: str, options: dict[str, Any], slas: Sequence[Sla], servers: dict[str, list[str]]
) -> Results:
    """A file without runs, made on this machine now."""
    return Results(
        verb=verb,
        command=_without_keys(sys.argv),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=this_machine(),
        versions=_versions(),
        options=options,
        slas=list(slas),
        servers=servers,
        runs=[],
    )


def make_run(
    label: str,
    round_number: int,
    num_clients: int | None,
    timelines: Sequence[Timeline],
    *,
    num_workers: int | None = None,
    processor: ProcessorShares | None = None,
    interrupted: bool = False,
) -> Run:
    """A run of these timelines, ordered by when they were sent."""
    ordered = sorted(timelines, key=lambda timeline: timeline.sent_at)
    origin_s = ordered[0].sent_at if ordered else 0.0
    compact = [CompactTimeline.of(timeline, origin_s) for timeline in ordered]
    return Run(
        label, round_number, num_clients, compact, num_workers, processor, interrupted=interrupted
    )


def write_results(path: Path, results: Results) -> None:
    """Replace the file; a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(msgspec.json.encode(results) + b"\n")
    part.rename(path)


def read_results(path: Path) -> Results:
    """A file that `write_results` has written.

    Raises:
        ConfigError: it cannot be read, or is no such file.
    """
    try:
        results = msgspec.json.decode(path.read_bytes(), type=Results)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} is no result file of this version: {error}") from None
    if results.format != FORMAT:
        raise ConfigError(f"{path} has format {results.format!r}, this version reads {FORMAT!r}")
    return results


def _without_keys(argv: Sequence[str]) -> list[str]:
    """The command line, with "..." for what follows --api-key."""
    shown: list[str] = []
    for argument in argv:
        if shown and shown[-1] == _KEY_FLAG:
            argument = "..."
        shown.append(f"{_KEY_FLAG}=..." if argument.startswith(f"{_KEY_FLAG}=") else argument)
    return shown


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "kernel": platform.release()}
    for name in VERSIONED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions
