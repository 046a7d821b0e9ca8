"""Finds the costs with which the simulator comes closest to what was measured."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from math import log

from benchmarks.reality.measured import Costs, MeasuredRun, Simulated
from common.workload.measures import Percentiles, Summary

#: first steps of the search, in each cost's own unit
FIRST_STEPS = {
    "slowdown": 0.1,
    "pass_ms": 0.5,
    "sampled_token_ms": 0.2,
    "request_ms": 3.0,
    "prompt_token_ms": 0.005,
    "noise": 0.05,
    "interruptions_per_s": 1.0,
    "interruption_ms": 4.0,
}
NUM_HALVINGS = 5
MAX_SWEEPS = 4  # over all costs with steps of one size
LEAST = {"slowdown": 0.5, "interruption_ms": 0.5}  # all others cannot be negative


def measures(summary: Summary) -> dict[str, float]:
    """What is compared: milliseconds, and requests/s."""
    found = {"requests/s": summary.requests_per_s}
    for name, percentiles in (("TTFT", summary.ttft_s), ("TBT", summary.tbt_s)):
        if isinstance(percentiles, Percentiles):
            found[f"{name} P50 ms"] = 1e3 * percentiles.p50
            found[f"{name} P99 ms"] = 1e3 * percentiles.p99
    return found


def fit(simulated: Simulated, runs: Sequence[MeasuredRun]) -> Costs:
    """Costs for these runs, by pattern search over the squared logarithms of all ratios."""

    def error(costs: Costs) -> float:
        return sum(_error(run.summary, simulated.summarize(run, costs)) for run in runs)

    return search(error, Costs())


def search(error: Callable[[Costs], float], costs: Costs) -> Costs:
    """Try a step up and down in each cost, keep what is better, halve the steps, and again."""
    best = error(costs)
    steps = dict(FIRST_STEPS)
    for _ in range(NUM_HALVINGS):
        for _ in range(MAX_SWEEPS):
            improved = False
            for field in fields(Costs):
                for step in (steps[field.name], -steps[field.name]):
                    value = max(getattr(costs, field.name) + step, LEAST.get(field.name, 0.0))
                    candidate = replace(costs, **{field.name: value})
                    found = error(candidate)
                    if found < best:
                        best, costs, improved = found, candidate, True
                        break
            if not improved:
                break
        steps = {name: step / 2 for name, step in steps.items()}
    return costs


def _error(measured: Summary, simulated: Summary) -> float:
    ours = measures(simulated)
    return sum(log(ours[name] / value) ** 2 for name, value in measures(measured).items() if value)
