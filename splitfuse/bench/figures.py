"""The paper's figures of a result file."""

from pathlib import Path

from common.workload.measures import Percentiles
from common.workload.plots import (
    Curves,
    Point,
    plot_goodput,
    plot_latency_throughput,
    plot_scaling,
    plot_token_latency,
)
from splitfuse.bench.results import Results
from splitfuse.bench.tables import Value, goodput_under, sla_name, spread

BARS_CLIENTS = 16  # where the paper compares token latencies; here the nearest that was measured


def draw_figures(results: Results, beside: Path) -> list[Path]:
    """Draw what the results can show, as PNG files named like `beside`.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if not any(run.summary and run.summary.latency_s for run in results.runs):
        return []
    drawn = [_path(beside, "token-latency")]
    plot_token_latency(drawn[0], _bars(results))
    if results.verb == "sweep":
        drawn += [_path(beside, "latency-throughput"), _path(beside, "goodput")]
        plot_latency_throughput(drawn[1], {"": _latency_throughput(results)})
        plot_goodput(drawn[2], _goodput(results))
    if results.verb == "replicas":
        drawn.append(_path(beside, "scaling"))
        plot_scaling(drawn[1], _scaling(results))
    return drawn


def _path(beside: Path, name: str) -> Path:
    return beside.with_name(f"{beside.stem}-{name}.png")


def _bars(results: Results) -> dict[str, dict[str, Percentiles]]:
    """All rounds of a server together, at the number of clients nearest to the paper's."""
    clients = {run.num_clients or 0 for run in results.runs}
    chosen = min(clients, key=lambda num: (abs(num - BARS_CLIENTS), num))
    bars: dict[str, Percentiles] = {}
    for (label, _, num_clients), runs in results.groups().items():
        gaps = [gap for run in runs for line in run.timelines for gap in line.timeline().gaps_s]
        found = Percentiles.of(gaps)
        if found is not None and (results.verb != "sweep" or num_clients == chosen):
            bars[label] = found
    title = f"{chosen} clients" if results.verb == "sweep" else ""
    return {title: bars}


def _latency_throughput(results: Results) -> Curves:
    """Throughput is clients / mean latency, as in the paper."""
    return _curves(
        results,
        lambda summary: summary.clients_per_latency,
        lambda summary: None if summary.latency_s is None else summary.latency_s.mean,
    )


def _goodput(results: Results) -> dict[str, Curves]:
    return {
        sla_name(sla): _curves(results, None, goodput_under(index))
        for index, sla in enumerate(results.slas)
    }


def _scaling(results: Results) -> Curves:
    points: list[Point] = []
    for (_, num_workers, _), runs in results.groups().items():
        summaries = [run.summary for run in runs if run.summary is not None]
        found = spread(summary.clients_per_latency for summary in summaries)
        if found is not None and num_workers is not None:
            points.append(Point(num_workers, *found))
    return {"splitfuse": points}


def _curves(results: Results, x: Value | None, y: Value) -> Curves:
    """By server; `x` None: the number of clients."""
    curves: dict[str, list[Point]] = {}
    for (label, _, num_clients), runs in results.groups().items():
        summaries = [run.summary for run in runs if run.summary is not None]
        at = (num_clients or 0,) if x is None else spread(map(x, summaries))
        found = spread(map(y, summaries))
        if at is not None and found is not None:
            curves.setdefault(label, []).append(Point(at[0], *found))
    return curves
