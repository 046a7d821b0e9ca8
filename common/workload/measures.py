"""From timelines of requests to the numbers that papers and dashboards report.

Definitions are those of DeepSpeed-FastGen (arXiv 2401.08671, section 4) and its published benchmark
code, which took the mean of end-to-end latencies and pandas' exponential mean of token gaps.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Self

from common.workload.timeline import Timeline

PAPER_PROMPT_TOKENS_PER_S = 512.0
PAPER_EMA_SPAN = 16  # tokens


@dataclass(frozen=True, slots=True)
class Sla:
    """What a client is promised: the first token in time, and a pace of generation.

    A request meets it if its first token comes within `num_prompt_tokens / prompt_tokens_per_s`
    and its exponential mean of token gaps stays below `1 / output_tokens_per_s` at every token.
    """

    output_tokens_per_s: float
    prompt_tokens_per_s: float = PAPER_PROMPT_TOKENS_PER_S
    ema_span: int = PAPER_EMA_SPAN  #: tokens; the mean's decay is 1 - 2 / (span + 1)

    def scaled(self, factor: float) -> Self:
        """The same promise for a machine that may take `factor` times as long."""
        return replace(
            self,
            output_tokens_per_s=self.output_tokens_per_s / factor,
            prompt_tokens_per_s=self.prompt_tokens_per_s / factor,
        )

    def is_met(self, timeline: Timeline) -> bool:
        """Whether a client got what it was promised; a request that failed did not."""
        if not has_finished(timeline):
            return False
        limit_s = timeline.shape.num_prompt_tokens / self.prompt_tokens_per_s
        means = exponential_means(timeline.gaps_s, self.ema_span)
        return timeline.ttft_s <= limit_s and all(
            mean < 1 / self.output_tokens_per_s for mean in means
        )


PAPER_SLAS = (Sla(2.0), Sla(4.0), Sla(6.0))


@dataclass(frozen=True, slots=True)
class Percentiles:
    """A distribution in brief; the unit is that of the values."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        """None if there are no values."""
        if not values:
            return None
        ordered = sorted(values)
        return cls(
            mean=fmean(ordered),
            p50=_at(ordered, 0.50),
            p90=_at(ordered, 0.90),
            p95=_at(ordered, 0.95),
            p99=_at(ordered, 0.99),
            max=ordered[-1],
        )


@dataclass(frozen=True, slots=True)
class Goodput:
    """How much of a load met an SLA: the paper's effective throughput."""

    sla: Sla
    share: float  #: of all requests, 0..1
    requests_per_s: float  #: that met it


@dataclass(frozen=True, slots=True)
class Summary:
    """One load in numbers. Latencies count finished requests only; None if there are none."""

    num_requests: int
    num_failed: int
    duration_s: float  #: from the first request sent to the last token received
    requests_per_s: float  #: finished ones, by the wall clock
    output_tokens_per_s: float
    total_tokens_per_s: float  #: of prompts and outputs
    #: num_clients / mean latency, what the paper plots: a closed loop that never runs dry has it
    clients_per_latency: float | None
    ttft_s: Percentiles | None  #: time to first token
    tbt_s: Percentiles | None  #: time between tokens, over all gaps of all requests
    tpot_s: Percentiles | None  #: mean time per output token after the first, over requests
    latency_s: Percentiles | None  #: end to end
    tokens_per_piece: float  #: above 1, gaps look longer than tokens take
    goodput: tuple[Goodput, ...]  #: one per SLA, in the order given


def summarize(
    timelines: Sequence[Timeline],
    slas: Sequence[Sla] = PAPER_SLAS,
    num_clients: int | None = None,
) -> Summary:
    """Sum up a load.

    Args:
        timelines: of all its requests, in any order, failed ones among them.
        num_clients: of a closed loop; None leaves `clients_per_latency` out.
    """
    finished = [timeline for timeline in timelines if has_finished(timeline)]
    duration_s = _duration_s(finished)
    num_output = sum(t.num_output_tokens for t in finished)
    num_prompt = sum(t.shape.num_prompt_tokens for t in finished)
    num_pieces = sum(len(t.token_at) for t in finished)
    latency_s = Percentiles.of([t.latency_s for t in finished])
    return Summary(
        num_requests=len(timelines),
        num_failed=len(timelines) - len(finished),
        duration_s=duration_s,
        requests_per_s=_rate(len(finished), duration_s),
        output_tokens_per_s=_rate(num_output, duration_s),
        total_tokens_per_s=_rate(num_output + num_prompt, duration_s),
        clients_per_latency=(
            num_clients / latency_s.mean if num_clients and latency_s and latency_s.mean else None
        ),
        ttft_s=Percentiles.of([t.ttft_s for t in finished]),
        tbt_s=Percentiles.of([gap for t in finished for gap in t.gaps_s]),
        tpot_s=Percentiles.of([t for t in map(_tpot_s, finished) if t is not None]),
        latency_s=latency_s,
        tokens_per_piece=num_output / num_pieces if num_pieces else 1.0,
        goodput=tuple(_goodput(sla, timelines, duration_s) for sla in slas),
    )


def has_finished(timeline: Timeline) -> bool:
    """Whether it has an end and a token at least."""
    return timeline.failure is None and bool(timeline.token_at)


def exponential_means(values: Iterable[float], span: int) -> list[float]:
    """The exponentially weighted mean of the values up to each.

    Weights are (1 - 2 / (span + 1)) ** age, divided by their sum, which is what pandas computes by
    `ewm(span=span).mean()`: early means do not lean on the first value.
    """
    decay = 1 - 2 / (span + 1)
    total = weight = 0.0
    means = []
    for value in values:
        total = value + decay * total
        weight = 1 + decay * weight
        means.append(total / weight)
    return means


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie, linear between neighbours; one value at least."""
    return _at(sorted(values), share)


def _at(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _duration_s(finished: Sequence[Timeline]) -> float:
    if not finished:
        return 0.0
    return max(t.token_at[-1] for t in finished) - min(t.sent_at for t in finished)


def _rate(count: int, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0


def _tpot_s(timeline: Timeline) -> float | None:
    """None for an output of one token, which has no time after its first."""
    after_first = timeline.num_output_tokens - 1
    return (timeline.latency_s - timeline.ttft_s) / after_first if after_first > 0 else None


def _goodput(sla: Sla, timelines: Sequence[Timeline], duration_s: float) -> Goodput:
    num_met = sum(map(sla.is_met, timelines))
    share = num_met / len(timelines) if timelines else 0.0
    return Goodput(sla, share, _rate(num_met, duration_s))
