"""Tables of a run: what each server did, and ours as a multiple of each peer's. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

Rounds = Sequence[Mapping[str, float]]  # one mapping from metric to value per round


@dataclass(frozen=True)
class Metric:
    key: str
    title: str
    higher_is_better: bool
    only_load: str | None = None  # it says something under this load alone
    digits: int = 0


LOAD_METRICS = (
    Metric("requests_per_s", "requests/s", True, digits=2),
    Metric("tokens_per_s", "prompt + output tokens/s", True),
    Metric("decode_tokens_per_s", "decode tokens/s of the stream", True, "A", digits=1),
    Metric("ttft_ms_p50", "first token P50, ms", False),
    Metric("ttft_ms_p99", "first token P99, ms", False),
    Metric("gap_ms_p50", "gap P50, ms", False, digits=1),
    Metric("gap_ms_p99", "gap P99, ms", False, digits=1),
    Metric("gap_ms_worst", "worst gap, ms", False),
)
SERVER_METRICS = (
    Metric("startup_s", "start to ready, s", False, digits=1),
    Metric("first_answer_s", "start to first answer, s", False, digits=1),
    Metric("peak_rss_mb", "peak memory, MB", False),
)


@dataclass(frozen=True)
class Spread:
    middle: float
    least: float
    most: float

    def show(self, digits: int) -> str:
        if self.least == self.most:
            return f"{self.middle:,.{digits}f}"
        return f"{self.middle:,.{digits}f} ({self.least:,.{digits}f}-{self.most:,.{digits}f})"


def spread(values: Sequence[float]) -> Spread | None:
    """Median, least and most; None if there are no values."""
    return Spread(median(values), min(values), max(values)) if values else None


def ratio(ours: Rounds, theirs: Rounds, key: str) -> Spread | None:
    """Ours / theirs, round by round, since a machine drifts; None if no round has both."""
    return spread(
        [a[key] / b[key] for a, b in zip(ours, theirs, strict=False) if key in a and b.get(key)]
    )


def table(
    metrics: Sequence[Metric], load: str | None, servers: Mapping[str, Rounds], ours: str
) -> list[str]:
    """Lines of a Markdown table: a column of values per server, then one of ratios per peer.

    Args:
        servers: what was measured, by server, rounds in order; a round that failed is empty.
        ours: the name in `servers` that the others are compared with.
    """
    peers = [name for name in servers if name != ours]
    heads = ["", *servers, *(f"{ours} / {peer}" for peer in peers)]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for metric in metrics:
        if metric.only_load in (None, load):
            values = [spread([r[metric.key] for r in rounds if r]) for rounds in servers.values()]
            ratios = [ratio(servers.get(ours, ()), servers[peer], metric.key) for peer in peers]
            cells = [_cell(value, metric.digits) for value in values]
            cells += [_ratio_cell(value, metric.higher_is_better) for value in ratios]
            lines.append(_row([metric.title, *cells]))
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Spread | None, digits: int) -> str:
    return value.show(digits) if value else "–"


def _ratio_cell(value: Spread | None, higher_is_better: bool) -> str:
    if value is None:
        return "–"
    if round(value.middle, 2) == 1:
        return f"{value.show(2)} even"
    return f"{value.show(2)} {'better' if (value.middle > 1) == higher_is_better else 'worse'}"
