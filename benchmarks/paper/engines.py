"""The two systems of the paper as far as the time of a pass goes.

The paper gives a curve of pass times without its model. At 768 tokens it reports 215 TFLOPS in
94 ms, which makes 13.2e9 parameters: the curve is Llama-2-13B's on one A100. For Llama-2-70B on
four, three numbers are missing; each is fitted to reported points that say nothing about policies:

    scale                 of the curve, so that one client of FastGen sees the latencies reported
    ms_per_context_token  so that FastGen's median token latency with 16 clients is as reported
    ms_per_pass           of vLLM, in addition: so that one client of vLLM sees those reported

All that is compared afterwards, which is every point with more than one client, is predicted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from benchmarks.paper import reported
from benchmarks.paper.arms import Arm, Engine, play, prefill_first, splitfuse
from common.workload.measures import Summary

NUM_SWEEPS = 3  # over the two numbers that depend on each other, which hardly do


@dataclass(frozen=True, slots=True)
class Engines:
    fastgen: Engine
    vllm: Engine


def fit_engines(seed: int) -> Engines:
    """Both engines, fitted to the reported points that the module docstring names."""
    engine = Engine(scale=1.0, ms_per_context_token=0.0, ms_per_pass=0.0)
    for _ in range(NUM_SWEEPS):
        engine = _fit_context(engine, seed)
        engine = _fit_scale(engine, seed)
    extra_ms = solve(
        lambda ms: _lone_latencies(prefill_first(replace(engine, ms_per_pass=ms)), seed),
        (0.0, 10.0),
        [reported.VLLM_LATENCY_S[lengths][0] for lengths in reported.LENGTHS],
    )
    return Engines(engine, replace(engine, ms_per_pass=extra_ms))


def _fit_scale(engine: Engine, seed: int) -> Engine:
    scale = solve(
        lambda scale: _lone_latencies(splitfuse(replace(engine, scale=scale)), seed),
        (1.0, 2.0),
        [reported.FASTGEN_LATENCY_S[lengths][0] for lengths in reported.LENGTHS],
    )
    return replace(engine, scale=scale)


def _fit_context(engine: Engine, seed: int) -> Engine:
    ms_per_token = solve(
        lambda ms: [_median_gap_ms(splitfuse(replace(engine, ms_per_context_token=ms)), seed)],
        (0.0, 0.001),
        [reported.FASTGEN_TOKEN_MS["p50"]],
    )
    return replace(engine, ms_per_context_token=max(ms_per_token, 0.0))


def _lone_latencies(arm: Arm, seed: int) -> list[float]:
    """Mean latency of one client for each of the paper's lengths, in seconds."""
    summaries = [play(arm, lengths, num_clients=1, seed=seed) for lengths in reported.LENGTHS]
    return [_mean_latency_s(summary) for summary in summaries]


def _median_gap_ms(arm: Arm, seed: int) -> float:
    summary = play(
        arm, reported.TOKEN_LATENCY_LENGTHS, num_clients=reported.TOKEN_LATENCY_CLIENTS, seed=seed
    )
    return 1e3 * summary.tbt_s.p50 if summary.tbt_s else 0.0


def _mean_latency_s(summary: Summary) -> float:
    return summary.latency_s.mean if summary.latency_s else 0.0


def solve(
    measure: Callable[[float], list[float]], at: tuple[float, float], targets: Sequence[float]
) -> float:
    """Where linear measures come closest to their targets, by relative least squares.

    Args:
        measure: linear in its argument.
        at: two arguments at which it is taken.
    """
    low, high = measure(at[0]), measure(at[1])
    slopes = [(b - a) / (at[1] - at[0]) / t for a, b, t in zip(low, high, targets, strict=True)]
    rests = [1 - a / t for a, t in zip(low, targets, strict=True)]
    numerator = fmean(slope * rest for slope, rest in zip(slopes, rests, strict=True))
    return at[0] + numerator / fmean(slope * slope for slope in slopes)
