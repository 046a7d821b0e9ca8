"""The paper's claims as ratios, reported and simulated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from benchmarks.paper import reported
from benchmarks.paper.arms import Arm, play, prefill_first, share_of_gaps_beyond, splitfuse
from benchmarks.paper.engines import Engines
from common.workload.measures import PAPER_SLAS, Percentiles, Summary

TOLERANCE = 0.25  # of a ratio, relatively

#: number of requests/s or seconds of an arm, by what is asked of it
Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Claim:
    """A ratio of the paper and what the simulator says of it."""

    text: str
    reported: float
    as_then: float  #: prefill-first on vLLM's engine of the time
    same_engine: float  #: prefill-first on FastGen's engine: what the policy alone does

    def off(self, value: float) -> float:
        """By how much a simulated ratio is off, relatively."""
        return value / self.reported - 1


def check_claims(engines: Engines, seed: int) -> list[Claim]:
    """All claims, simulated with one seed."""
    ours = splitfuse(engines.fastgen)
    then, same = prefill_first(engines.vllm), prefill_first(engines.fastgen)
    return [
        Claim(text, paper, ratio(ours, then, seed), ratio(ours, same, seed))
        for text, paper, ratio in _CLAIMS
    ]


def sweep(arm: Arm, lengths: tuple[int, int], seed: int) -> list[Summary]:
    """The paper's client counts, in their order."""
    return [play(arm, lengths, num_clients=n, seed=seed) for n in reported.CLIENTS]


def goodput_peak(arm: Arm, tokens_per_s: int, seed: int) -> reported.Peak:
    """The largest effective throughput over the paper's client counts."""
    index = next(i for i, s in enumerate(PAPER_SLAS) if s.output_tokens_per_s == tokens_per_s)
    summaries = sweep(arm, reported.GOODPUT_LENGTHS, seed)
    rates = [summary.goodput[index].requests_per_s for summary in summaries]
    best = max(range(len(rates)), key=rates.__getitem__)
    return reported.Peak(rates[best], reported.CLIENTS[best])


def token_latency(
    arm: Arm, seed: int, lengths: tuple[int, int] = reported.TOKEN_LATENCY_LENGTHS
) -> Percentiles:
    """Times between tokens with 16 clients."""
    summary = play(arm, lengths, num_clients=reported.TOKEN_LATENCY_CLIENTS, seed=seed)
    if summary.tbt_s is None:
        raise RuntimeError("a load of the paper gave no tokens")
    return summary.tbt_s


def late_gap_share(arm: Arm, seed: int) -> float:
    """Of the times between tokens with 16 clients, how many exceed twice their median."""
    return share_of_gaps_beyond(
        arm,
        reported.TOKEN_LATENCY_LENGTHS,
        limit_s=2 * token_latency(arm, seed).p50,
        num_clients=reported.TOKEN_LATENCY_CLIENTS,
        seed=seed,
    )


def replica_scaling(arm: Arm, seed: int) -> dict[int, float]:
    """Requests/s by number of replicas, clients and requests in proportion."""
    return {
        n: play(
            arm,
            reported.GOODPUT_LENGTHS,
            num_clients=n * reported.REPLICA_CLIENTS,
            num_requests=n * reported.REPLICA_REQUESTS,
            num_workers=n,
            seed=seed,
        ).requests_per_s
        for n in reported.REPLICAS
    }


def _throughput_at(arm: Arm, seed: int) -> float:
    curve = latency_curve(sweep(arm, (1200, 128), seed))
    return interpolate([(s, rps) for rps, s in curve], reported.EQUAL_LATENCY_S)


def _latency_at(arm: Arm, seed: int) -> float:
    return interpolate(latency_curve(sweep(arm, (2600, 60), seed)), reported.EQUAL_THROUGHPUT)


def latency_curve(summaries: Sequence[Summary]) -> list[tuple[float, float]]:
    """Points of (clients / mean latency, mean latency in seconds)."""
    return [
        (s.clients_per_latency, s.latency_s.mean)
        for s in summaries
        if s.clients_per_latency is not None and s.latency_s is not None
    ]


def interpolate(curve: Curve, x: float) -> float:
    """The first crossing of a curve of points (x, y), linear between them; NaN if none."""
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0) if x1 > x0 else y0
    return float("nan")


def _throughput_ratio(ours: Arm, theirs: Arm, seed: int) -> float:
    return _throughput_at(ours, seed) / _throughput_at(theirs, seed)


def _latency_ratio(ours: Arm, theirs: Arm, seed: int) -> float:
    return _latency_at(theirs, seed) / _latency_at(ours, seed)


def _goodput_ratio(sla: int, ours: Arm, theirs: Arm, seed: int) -> float:
    theirs_per_s = goodput_peak(theirs, sla, seed).requests_per_s
    return goodput_peak(ours, sla, seed).requests_per_s / theirs_per_s


def _token_latency_ratio(name: str, ours: Arm, theirs: Arm, seed: int) -> float:
    ours_s: float = getattr(token_latency(ours, seed), name)
    theirs_s: float = getattr(token_latency(theirs, seed), name)
    return theirs_s / ours_s


_CLAIMS: Sequence[tuple[str, float, Callable[[Arm, Arm, int], float]]] = (
    ("requests/s at a mean latency of 9 s, p1200/g128", 1.36 / 0.67, _throughput_ratio),
    ("mean latency at 1.2 requests/s, p2600/g60, theirs / ours", 14 / 7, _latency_ratio),
    *(
        (
            f"peak goodput at {sla} tokens/s, p2600/g60",
            ours.requests_per_s / reported.VLLM_GOODPUT[sla].requests_per_s,
            partial(_goodput_ratio, sla),
        )
        for sla, ours in reported.FASTGEN_GOODPUT.items()
    ),
    *(
        (
            f"{name.upper()} token latency, 16 clients, p2600/g128, theirs / ours",
            reported.VLLM_TOKEN_MS[name] / ours_ms,
            partial(_token_latency_ratio, name),
        )
        for name, ours_ms in reported.FASTGEN_TOKEN_MS.items()
    ),
)
