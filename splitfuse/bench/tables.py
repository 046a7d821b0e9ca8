"""Results as a person reads them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rich import box
from rich.table import Table

from common.workload.measures import Percentiles, Sla, Summary
from splitfuse.bench.results import Results, Run

OTHERS_LIMIT = 0.03  # share of the cores; above it a number is a few per cent too slow
PIECE_LIMIT = 1.02  # tokens per piece of text; above it gaps look longer than tokens take


Value = Callable[[Summary], float | None]  # None where the load has none


@dataclass(frozen=True, slots=True)
class Column:
    """A measure in the table."""

    title: str
    value: Value
    digits: int
    is_brief: bool = False  #: whether it is shown on the terminal, too


def _ms(percentiles: Percentiles | None, name: str) -> float | None:
    return None if percentiles is None else 1e3 * float(getattr(percentiles, name))


def _mean_s(percentiles: Percentiles | None) -> float | None:
    return None if percentiles is None else percentiles.mean


COLUMNS = (
    Column("requests/s", lambda s: s.requests_per_s, 2, is_brief=True),
    Column("clients / mean latency, 1/s", lambda s: s.clients_per_latency, 2),
    Column("output tokens/s", lambda s: s.output_tokens_per_s, 0),
    Column("latency, s", lambda s: _mean_s(s.latency_s), 2, is_brief=True),
    Column("TTFT P50, ms", lambda s: _ms(s.ttft_s, "p50"), 0, is_brief=True),
    Column("TTFT P99, ms", lambda s: _ms(s.ttft_s, "p99"), 0),
    Column("TBT P50, ms", lambda s: _ms(s.tbt_s, "p50"), 1, is_brief=True),
    Column("TBT P90, ms", lambda s: _ms(s.tbt_s, "p90"), 1),
    Column("TBT P95, ms", lambda s: _ms(s.tbt_s, "p95"), 1, is_brief=True),
    Column("TBT P99, ms", lambda s: _ms(s.tbt_s, "p99"), 1, is_brief=True),
)


def results_table(results: Results) -> Table:
    """A row per server and number of clients: medians over rounds."""
    columns = [column for column in _columns(results) if column.is_brief]
    heads = [column.title.replace(", ", "\n").replace(" P", "\nP") for column in columns]
    table = Table("server", "clients", *heads, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for (label, _, num_clients), runs in results.groups().items():
        table.add_row(label, _clients(num_clients), *(_median(column, runs) for column in columns))
    return table


def markdown(results: Results) -> str:
    """A table per number of clients with all measures: medians over rounds, and their range.

    The first server is compared with each other round by round, since a machine drifts.
    """
    by_clients: dict[str, dict[str, list[Run]]] = {}
    for (label, _, num_clients), runs in results.groups().items():
        by_clients.setdefault(_clients(num_clients), {})[label] = runs
    parts = [f"    {' '.join(results.command)}", "", f"{results.machine.cpu}, {results.date}", ""]
    for clients, servers in by_clients.items():
        parts += [f"### clients: {clients}", "", *_comparison(_columns(results), servers), ""]
    return "\n".join(parts)


def _comparison(columns: Sequence[Column], servers: Mapping[str, Sequence[Run]]) -> list[str]:
    first, *others = servers
    heads = ["", *servers, *(f"{first} / {other}" for other in others)]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for column in columns:
        cells = [_range(spread(_values(column, runs)), column.digits) for runs in servers.values()]
        ratios = [spread(_ratios(column, servers[first], servers[other])) for other in others]
        lines.append(_row([column.title, *cells, *(_range(ratio, 2) for ratio in ratios)]))
    return lines


def _columns(results: Results) -> list[Column]:
    goodput = [
        Column(f"goodput, {sla_name(sla)}", goodput_under(index), 2, is_brief=True)
        for index, sla in enumerate(results.slas)
    ]
    return [*COLUMNS, *goodput]


def goodput_under(index: int) -> Value:
    """Requests per second that met the SLA of this index."""
    return lambda summary: summary.goodput[index].requests_per_s


def sla_name(sla: Sla) -> str:
    """The pace that it promises."""
    return f"{sla.output_tokens_per_s:.3g} tok/s"


def one_line(run: Run) -> str:
    """A run in brief, with what makes its numbers worth less at its end."""
    summary = run.summary
    if summary is None or summary.ttft_s is None:
        return "nothing came back"
    gaps = summary.tbt_s
    parts = [
        f"{summary.requests_per_s:.2f} requests/s",
        f"{summary.output_tokens_per_s:.0f} tokens/s",
        f"first token {1e3 * summary.ttft_s.p50:.0f} ms",
        "one token each" if gaps is None else f"gap P50 {1e3 * gaps.p50:.1f} ms",
        "" if gaps is None else f"P99 {1e3 * gaps.p99:.1f} ms",
        *doubts(run),
    ]
    return ", ".join(filter(None, parts))


def doubts(run: Run) -> list[str]:
    """What makes the numbers worth less; nothing if they are sound."""
    found = []
    summary = run.summary
    if run.interrupted:
        found.append("INTERRUPTED")
    if summary is not None and summary.num_failed:
        failed = (t.failure for t in run.timelines if t.failure)
        found.append(f"{summary.num_failed} REQUESTS FAILED: {next(failed, 'without text')}")
    if summary is not None and summary.tokens_per_piece > PIECE_LIMIT:
        found.append(f"{summary.tokens_per_piece:.2f} TOKENS CAME AT A TIME")
    if run.short_share > 0:
        found.append(f"{100 * run.short_share:.0f} % OF THE OUTPUTS ARE SHORTER THAN ASKED FOR")
    processor = run.processor
    if processor is not None and processor.server is not None and processor.others > OTHERS_LIMIT:
        found.append(f"OTHERS USED {100 * processor.others:.1f} % OF THE PROCESSOR")
    return found


def spread(values: Iterable[float | None]) -> tuple[float, float, float] | None:
    """Median, least and most of those that are there; None if none is."""
    found = [value for value in values if value is not None]
    return (median(found), min(found), max(found)) if found else None


def _values(column: Column, runs: Iterable[Run]) -> list[float | None]:
    return [column.value(run.summary) for run in runs if run.summary is not None]


def _ratios(column: Column, ours: Iterable[Run], theirs: Iterable[Run]) -> list[float]:
    by_round = {run.round_number: column.value(run.summary) for run in theirs if run.summary}
    pairs = [
        (column.value(run.summary), by_round.get(run.round_number)) for run in ours if run.summary
    ]
    return [our / their for our, their in pairs if our is not None and their]


def _median(column: Column, runs: Iterable[Run]) -> str:
    found = spread(_values(column, runs))
    return "–" if found is None else f"{found[0]:,.{column.digits}f}"


def _range(found: tuple[float, float, float] | None, digits: int) -> str:
    if found is None:
        return "–"
    middle, least, most = (f"{value:,.{digits}f}" for value in found)
    return middle if least == most else f"{middle} ({least}-{most})"


def _clients(num_clients: int | None) -> str:
    return "open loop" if num_clients is None else str(num_clients)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
