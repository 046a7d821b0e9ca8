"""Figures that look like those of the DeepSpeed-FastGen paper, from measured or simulated numbers.

Equal input gives equal files: fixed style, no window system, no global state of matplotlib, which
is imported when the first figure is drawn.
"""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from common.workload.measures import Percentiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
PANEL_INCHES = (5.2, 4.2)
COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")
MARKERS = "osD^vP*X"
TOKEN_PERCENTILES = ("p50", "p90", "p95", "p99")
_STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is everywhere
    "font.size": 10,
    "grid.alpha": 0.35,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.hashsalt": "splitfuse",  # ids in the file do not change from run to run
}


@dataclass(frozen=True, slots=True)
class Point:
    """One measured point; the bounds are its spread over rounds, None if there was one round."""

    x: float
    y: float
    y_low: float | None = None
    y_high: float | None = None


Curves = Mapping[str, Sequence[Point]]  # by label, in the order of colours


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def plot_latency_throughput(path: Path, panels: Mapping[str, Curves]) -> None:
    """The paper's figure of mean latency [s] (y) against throughput [requests/s] (x)."""
    with _figure(path, len(panels)) as axes:
        for axis, (title, curves) in zip(axes, panels.items(), strict=True):
            _draw_curves(axis, curves)
            _name(axis, title, "throughput (requests/s)", "mean latency (s)")


def plot_goodput(path: Path, panels: Mapping[str, Curves]) -> None:
    """The paper's figure of effective throughput [requests/s] (y) over clients (x), per SLA."""
    with _figure(path, len(panels)) as axes:
        for axis, (title, curves) in zip(axes, panels.items(), strict=True):
            _draw_curves(axis, curves)
            _name(axis, title, "clients", "effective throughput (requests/s)")


def plot_token_latency(path: Path, panels: Mapping[str, Mapping[str, Percentiles]]) -> None:
    """The paper's figure of token latency percentiles, as bars; latencies in seconds by label."""
    with _figure(path, len(panels)) as axes:
        for axis, (title, bars) in zip(axes, panels.items(), strict=True):
            _draw_bars(axis, bars)
            _name(axis, title, "percentile", "time between tokens (ms)")


def plot_scaling(path: Path, curves: Curves) -> None:
    """Throughput [requests/s] (y) over replicas (x); the line that is N times one is dashed."""
    with _figure(path, 1) as (axis,):
        _draw_curves(axis, curves)
        for points in curves.values():
            if points:
                xs = [0.0, max(point.x for point in points)]
                per_replica = points[0].y / points[0].x
                axis.plot(xs, [per_replica * x for x in xs], "--", color="#999999", linewidth=1)
        _name(axis, "", "replicas", "throughput (requests/s)")


def plot_pass_time(path: Path, pass_ms: Curves) -> None:
    """The paper's figure 2: time of a pass [ms] and its tokens/s, over its tokens.

    Args:
        pass_ms: by label, points of (tokens in the pass, milliseconds).
    """
    rates = {
        label: [Point(point.x, 1e3 * point.x / point.y) for point in points if point.y > 0]
        for label, points in pass_ms.items()
    }
    with _figure(path, 2) as (time_axis, rate_axis):
        _draw_curves(time_axis, pass_ms)
        _name(time_axis, "latency of a pass", "tokens in the pass", "time (ms)")
        _draw_curves(rate_axis, rates)
        _name(rate_axis, "throughput of a pass", "tokens in the pass", "tokens/s")
        rate_axis.set_xscale("log", base=2)  # the knee lies among the small passes
        rate_axis.set_xlim(left=1)
        rate_axis.xaxis.set_major_formatter("{x:.0f}")


def _draw_curves(axis: "Axes", curves: Curves) -> None:
    for index, (label, points) in enumerate(curves.items()):
        xs = [point.x for point in points]
        ys = [point.y for point in points]
        below = [p.y - (p.y if p.y_low is None else p.y_low) for p in points]
        above = [(p.y if p.y_high is None else p.y_high) - p.y for p in points]
        axis.errorbar(
            xs,
            ys,
            yerr=[below, above] if any(below) or any(above) else None,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            capsize=2,
            elinewidth=0.8,
            label=label,
        )
    axis.set_xlim(left=0)
    _explain(axis, len(curves))


def _draw_bars(axis: "Axes", bars: Mapping[str, Percentiles]) -> None:
    width = 0.8 / max(len(bars), 1)
    for index, (label, percentiles) in enumerate(bars.items()):
        heights = [1e3 * getattr(percentiles, name) for name in TOKEN_PERCENTILES]
        places = [place + width * (index - (len(bars) - 1) / 2) for place in range(len(heights))]
        drawn = axis.bar(places, heights, width, color=COLOURS[index % len(COLOURS)], label=label)
        axis.bar_label(drawn, fmt="%.0f", fontsize=7, padding=1)
    axis.set_xticks(range(len(TOKEN_PERCENTILES)), [name.upper() for name in TOKEN_PERCENTILES])
    axis.grid(visible=False, axis="x")
    _explain(axis, len(bars))


def _explain(axis: "Axes", num_labels: int) -> None:
    """Below the panel, where no curve runs through it."""
    if num_labels:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _name(axis: "Axes", title: str, x: str, y: str) -> None:
    axis.set(title=title, xlabel=x, ylabel=y)
    axis.set_ylim(bottom=0)


@contextmanager
def _figure(path: Path, num_panels: int) -> "Iterator[list[Axes]]":
    """Panels in a row to draw into; the file is written when the block ends.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"plots need {error.name}: pip install 'splitfuse[bench]' brings it"
        ) from None
    style: Any = _STYLE
    with matplotlib.rc_context(style):
        columns = max(num_panels, 1)
        figure = Figure(figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1]))
        yield [figure.add_subplot(1, columns, column + 1) for column in range(columns)]
        _save(figure, path)


def _save(figure: "Figure", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    undated = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(path, dpi=DPI, metadata=undated)
