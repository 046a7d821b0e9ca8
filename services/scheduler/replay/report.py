"""What a replay has shown, as people read it."""

from collections.abc import Callable
from dataclasses import dataclass

from rich.table import Table

from common.workload.measures import Percentiles
from services.scheduler.record import Header
from services.scheduler.replay.differences import brief
from services.scheduler.replay.reproduction import Divergence, Reproduction
from services.scheduler.replay.what_if import FirstDifference, Outcome, WhatIf


def reproduction_lines(result: Reproduction, wall_s: float) -> list[str]:
    """How much came out alike, and what did not."""
    rate = result.num_decisions / wall_s if wall_s > 0 else 0.0
    lines = [
        f"{result.num_decisions:,} decisions ({result.num_steps:,} steps) and "
        f"{result.num_states:,} states on the way came out alike: "
        f"{result.ended_at - result.began_at:,.1f} s of the scheduler's time in {wall_s:.1f} s, "
        f"{rate:,.0f} decisions/s"
    ]
    if result.crash is not None and result.divergence is None:
        lines.append(f"The record ends with a crash, and so does its replay: {result.crash}")
    if result.divergence is not None:
        lines += _divergence_lines(result.divergence, result.began_at)
    return lines


def _divergence_lines(divergence: Divergence, began_at: float) -> list[str]:
    at = f"{divergence.now - began_at:.6f} s after the record's beginning"
    if divergence.event is None:
        what = f"After decision {divergence.number:,}, {at}, the scheduler's state is another:"
        return [what, *_indented(divergence.differences)]
    return [
        f"Decision {divergence.number + 1:,}, {at}, came out otherwise. The event:",
        *_indented([brief(divergence.event)]),
        "and the answer to it:",
        *_indented(divergence.differences),
    ]


def made_by_lines(header: Header, made_by: str) -> list[str]:
    """A warning if other code decides now than did then."""
    if header.made_by == made_by:
        return []
    return [f"Recorded by {header.made_by}; replayed by {made_by}."]


@dataclass(frozen=True, slots=True)
class _Row:
    title: str
    value: Callable[[Outcome], float | None]
    digits: int = 0


def _ms(percentiles: Percentiles | None, name: str) -> float | None:
    return None if percentiles is None else 1e3 * float(getattr(percentiles, name))


_ROWS = (
    _Row("requests finished", lambda o: o.summary.num_requests - o.summary.num_failed),
    _Row("requests failed", lambda o: o.summary.num_failed),
    _Row("requests/s", lambda o: o.summary.requests_per_s, 2),
    _Row("output tokens/s", lambda o: o.summary.output_tokens_per_s, 1),
    _Row("time to first token, P50, ms", lambda o: _ms(o.summary.ttft_s, "p50"), 1),
    _Row("time to first token, P99, ms", lambda o: _ms(o.summary.ttft_s, "p99"), 1),
    _Row("time between tokens, P50, ms", lambda o: _ms(o.summary.tbt_s, "p50"), 1),
    _Row("time between tokens, P95, ms", lambda o: _ms(o.summary.tbt_s, "p95"), 1),
    _Row("time between tokens, P99, ms", lambda o: _ms(o.summary.tbt_s, "p99"), 1),
    _Row("passes", lambda o: o.num_passes),
    _Row("tokens per pass, mean", lambda o: o.mean_pass_tokens, 1),
    _Row("tokens per pass, most", lambda o: o.max_pass_tokens),
    _Row("preemptions", lambda o: o.num_preemptions),
)


def what_if_table(answer: WhatIf) -> Table:
    """Recorded, simulated as recorded, simulated with other options."""
    table = Table("", "recorded", "simulated as recorded", "simulated with other options")
    for row in _ROWS:
        outcomes = (answer.recorded, answer.as_recorded, answer.changed)
        table.add_row(row.title, *(_cell(row, outcome) for outcome in outcomes))
    return table


def _cell(row: _Row, outcome: Outcome) -> str:
    value = row.value(outcome)
    return "–" if value is None else f"{value:,.{row.digits}f}"


def what_if_lines(answer: WhatIf) -> list[str]:
    """What the table rests on, and where the two schedulers part."""
    return [
        f"Over the {answer.num_measured:,} requests that began and ended in the record, as the "
        "scheduler saw them. Arrivals, cancels and workers are the recorded ones; passes take what "
        "a cost model says that was fitted to the recorded ones (half of them within "
        f"{answer.relative_error:.1%}). What the second column differs from the first is the "
        "simulation's error.",
        *_difference_lines(answer.first_difference),
    ]


def _difference_lines(difference: FirstDifference | None) -> list[str]:
    if difference is None:
        return ["All decisions are alike."]
    return [
        f"The first {difference.number:,} decisions are alike. At {difference.now:.6f} s, after "
        "this event:",
        *_indented([difference.event]),
        "the scheduler as recorded (expected) and the other one (got) part:",
        *_indented(difference.differences),
    ]


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]
