"""The paper's figures, from simulated points and with the reported ones."""

from pathlib import Path

from benchmarks.paper import reported
from benchmarks.paper.arms import prefill_first, splitfuse
from benchmarks.paper.claims import latency_curve, sweep, token_latency
from benchmarks.paper.engines import Engines
from common.workload.measures import PAPER_SLAS
from common.workload.plots import (
    Curves,
    Point,
    plot_goodput,
    plot_latency_throughput,
    plot_scaling,
    plot_token_latency,
)


def draw_figures(directory: Path, engines: Engines, scaling: dict[int, float], seed: int) -> None:
    """Four files, named after what they show.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    plot_latency_throughput(
        directory / "latency-throughput.png",
        {_title(lengths): _latencies(engines, lengths, seed) for lengths in reported.LENGTHS},
    )
    plot_goodput(
        directory / "goodput.png",
        {
            f"{_title(reported.GOODPUT_LENGTHS)}, {sla.output_tokens_per_s:g} tokens/s": _goodput(
                engines, index, seed
            )
            for index, sla in enumerate(PAPER_SLAS)
        },
    )
    plot_token_latency(
        directory / "token-latency.png",
        {
            f"{_title(reported.TOKEN_LATENCY_LENGTHS)}, 16 clients": {
                "SplitFuse": token_latency(splitfuse(engines.fastgen), seed),
                "prefill-first": token_latency(prefill_first(engines.vllm), seed),
            }
        },
    )
    plot_scaling(
        directory / "replicas.png",
        {
            "SplitFuse": [Point(n, rate) for n, rate in scaling.items()],
            "FastGen reported": [Point(n, r) for n, r in reported.REPLICA_REQUESTS_PER_S.items()],
        },
    )


def _title(lengths: tuple[int, int]) -> str:
    return f"p{lengths[0]}/g{lengths[1]}"


def _latencies(engines: Engines, lengths: tuple[int, int], seed: int) -> Curves:
    def simulated(summaries: list[tuple[float, float]]) -> list[Point]:
        return [Point(rate, latency) for rate, latency in summaries]

    def from_paper(latencies_s: tuple[float, ...]) -> list[Point]:
        return [Point(n / s, s) for n, s in zip(reported.CLIENTS, latencies_s, strict=True)]

    return {
        "SplitFuse": simulated(latency_curve(sweep(splitfuse(engines.fastgen), lengths, seed))),
        "prefill-first": simulated(
            latency_curve(sweep(prefill_first(engines.vllm), lengths, seed))
        ),
        "FastGen reported": from_paper(reported.FASTGEN_LATENCY_S[lengths]),
        "vLLM reported": from_paper(reported.VLLM_LATENCY_S[lengths]),
    }


def _goodput(engines: Engines, index: int, seed: int) -> Curves:
    arms = {
        "SplitFuse": splitfuse(engines.fastgen),
        "prefill-first": prefill_first(engines.vllm),
        "prefill-first, same engine": prefill_first(engines.fastgen),
    }
    return {
        name: [
            Point(clients, summary.goodput[index].requests_per_s)
            for clients, summary in zip(
                reported.CLIENTS, sweep(arm, reported.GOODPUT_LENGTHS, seed), strict=True
            )
        ]
        for name, arm in arms.items()
    }
