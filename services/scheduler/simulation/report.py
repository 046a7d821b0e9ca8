"""Simulated runs as people and programs read them."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from rich.table import Table

from common.workload.measures import Percentiles, Sla
from common.workload.plots import (
    Curves,
    Point,
    plot_goodput,
    plot_latency_throughput,
    plot_scaling,
    plot_token_latency,
)
from services.scheduler.simulation.comparison import Outcome

FORMAT = "splitfuse simulate 1"


@dataclass(frozen=True, slots=True)
class Column:
    """A measure; `value` is None where a run has none."""

    title: str
    value: Callable[[Outcome], float | None]
    digits: int


def _ms(percentiles: Percentiles | None, name: str) -> float | None:
    return None if percentiles is None else 1e3 * float(getattr(percentiles, name))


COLUMNS = (
    Column("requests/s", lambda o: o.summary.requests_per_s, 2),
    Column("latency s", lambda o: None if (s := o.summary.latency_s) is None else s.mean, 2),
    Column("TTFT P50 ms", lambda o: _ms(o.summary.ttft_s, "p50"), 0),
    Column("TTFT P99 ms", lambda o: _ms(o.summary.ttft_s, "p99"), 0),
    Column("TBT P50 ms", lambda o: _ms(o.summary.tbt_s, "p50"), 1),
    Column("TBT P95 ms", lambda o: _ms(o.summary.tbt_s, "p95"), 1),
    Column("TBT P99 ms", lambda o: _ms(o.summary.tbt_s, "p99"), 1),
)
LAST_COLUMNS = (
    Column("tokens/pass", lambda o: o.tokens_per_pass, 0),
    Column("busy %", lambda o: 100 * o.busy_share, 0),
)


def outcomes_table(outcomes: Sequence[Outcome], slas: Sequence[Sla]) -> Table:
    """A row per policy, workers and load: medians over rounds, with least and most."""
    goodput = [
        Column(
            f"goodput {sla.output_tokens_per_s:.3g} tok/s",
            lambda o, i=index: o.summary.goodput[i].requests_per_s,  # type: ignore[misc]
            2,
        )
        for index, sla in enumerate(slas)
    ]
    columns = [*COLUMNS, *goodput, *LAST_COLUMNS]
    table = Table("policy", "workers", "load", *(column.title for column in columns))
    for (policy, num_workers, load), runs in grouped(outcomes).items():
        cells = (_cell(column, runs) for column in columns)
        table.add_row(policy, str(num_workers), load, *cells)
    return table


def grouped(outcomes: Iterable[Outcome]) -> dict[tuple[str, int, str], list[Outcome]]:
    """Runs of all rounds by (policy, workers, load), in the order in which they came."""
    groups: dict[tuple[str, int, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.policy, outcome.num_workers, outcome.load), []).append(outcome)
    return groups


def _cell(column: Column, runs: Sequence[Outcome]) -> str:
    found = [value for value in map(column.value, runs) if value is not None]
    if not found:
        return "–"
    middle, least, most = (f"{f(found):,.{column.digits}f}" for f in (median, min, max))
    return middle if least == most else f"{middle} ({least}-{most})"


def write_json(path: Path, assumptions: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    """All numbers of all runs, and what they rest on."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "command": sys.argv,
        "assumptions": list(assumptions),
        "runs": [asdict(outcome) for outcome in outcomes],
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")


def draw_figures(directory: Path, outcomes: Sequence[Outcome], slas: Sequence[Sla]) -> None:
    """The paper's figures, of the first number of workers; and of scaling, if there are several.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    first = [o for o in outcomes if o.num_workers == outcomes[0].num_workers]
    plot_latency_throughput(directory / "latency-throughput.svg", {"": _latencies(first)})
    goodput = {
        f"{sla.output_tokens_per_s:.3g} tokens/s": _curves(
            first,
            lambda o, i=index: (o.x, o.summary.goodput[i].requests_per_s),  # type: ignore[misc]
        )
        for index, sla in enumerate(slas)
    }
    plot_goodput(directory / "goodput.svg", goodput)
    plot_token_latency(directory / "token-latency.svg", _bars(first))
    if len({outcome.num_workers for outcome in outcomes}) > 1:
        plot_scaling(
            directory / "workers.svg",
            _curves(
                [o for o in outcomes if o.round_number == 1],
                lambda o: (o.num_workers, o.summary.requests_per_s),
            ),
        )


def _latencies(outcomes: Sequence[Outcome]) -> Curves:
    def point(outcome: Outcome) -> tuple[float, float] | None:
        latency = outcome.summary.latency_s
        return None if latency is None else (outcome.summary.requests_per_s, latency.mean)

    return _curves(outcomes, point)


def _curves(
    outcomes: Sequence[Outcome], point: Callable[[Outcome], tuple[float, float] | None]
) -> dict[str, list[Point]]:
    """By policy, a point per load: medians over rounds, y with its spread."""
    curves: dict[str, list[Point]] = {}
    for (policy, _, _), runs in grouped(outcomes).items():
        found = [xy for xy in map(point, runs) if xy is not None]
        if found:
            xs, ys = zip(*found, strict=True)
            curves.setdefault(policy, []).append(Point(median(xs), median(ys), min(ys), max(ys)))
    return curves


def _bars(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Percentiles]]:
    """Of the largest load, first round."""
    last = outcomes[-1].load
    return {
        last: {
            outcome.policy: outcome.summary.tbt_s
            for outcome in outcomes
            if outcome.load == last and outcome.round_number == 1 and outcome.summary.tbt_s
        }
    }
