"""Simulates the FastGen paper's comparison and prints its ratios beside the reported ones.

    python -m benchmarks.paper [--seeds 3] [--json FILE] [--plots DIRECTORY]

Takes about half a minute per seed on one core. Simulated are SplitFuse as FastGen's code has it and
prefill-first, the latter on the engine that vLLM was then and on FastGen's own, which leaves the
policy as the only difference.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.paper import reported
from benchmarks.paper.arms import LLAMA_2_70B, Arm, kv_blocks, prefill_first, splitfuse
from benchmarks.paper.claims import (
    TOLERANCE,
    Claim,
    check_claims,
    late_gap_share,
    replica_scaling,
    sweep,
    token_latency,
)
from benchmarks.paper.engines import Engines, fit_engines
from benchmarks.paper.figures import draw_figures

FIRST_SEED = 42  # the paper's
EARLY_END = 0.9  # share of the drawn output that is left where outputs end by a stop token


def main() -> None:
    """Fit, simulate, print; and write what was asked for."""
    arguments = _arguments()
    console = Console(width=150)
    engines = fit_engines(FIRST_SEED)
    _print_engines(console, engines)
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    claims = [check_claims(engines, seed) for seed in seeds]
    console.print(_claims_table(claims))
    for lengths in reported.LENGTHS:
        console.print(_curve_table(engines, lengths))
    scaling = replica_scaling(splitfuse(engines.fastgen), FIRST_SEED)
    console.print(_scaling_table(scaling))
    _print_differences(console, engines)
    if arguments.json:
        document = _document(engines, claims, scaling)
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
    if arguments.plots:
        draw_figures(arguments.plots, engines, scaling, FIRST_SEED)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="loads drawn, for the spread")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--plots", type=Path, help="draw the paper's figures into this directory")
    return parser.parse_args()


def _print_engines(console: Console, engines: Engines) -> None:
    fastgen, vllm = engines.fastgen, engines.vllm
    params = reported.PASS_TFLOPS_AT_768 * 94 / (2 * 768)
    console.print(
        f"The curve: {reported.PASS_TFLOPS_AT_768:g} TFLOPS in 94 ms at 768 tokens is a model of "
        f"{params:.1f}e9 parameters on one A100 (Llama-2-13B).\n"
        f"Fitted: 70B on four A100 takes {fastgen.scale:.2f} times as long (by arithmetic alone "
        f"{LLAMA_2_70B.num_params / params / 4 / 1e9:.2f}); "
        f"{1e3 * fastgen.ms_per_context_token:.2f} us per context token; vLLM of 2023 takes "
        f"{vllm.ms_per_pass:.1f} ms more per pass.\n"
        f"Assumed: {kv_blocks() * 64:,} tokens of KV, no time between passes, none in the network, "
        f"outputs as long as drawn.\n"
    )


def _claims_table(claims: list[list[Claim]]) -> Table:
    table = Table(title=f"Ratios, ours over theirs; * = more than {TOLERANCE:.0%} off")
    table.add_column("what")
    for name in ("paper", "against vLLM's engine of 2023", "against the same engine"):
        table.add_column(name, justify="right")
    for of_seeds in zip(*claims, strict=True):
        table.add_row(
            of_seeds[0].text,
            f"{of_seeds[0].reported:.2f}",
            _spread(of_seeds[0], [claim.as_then for claim in of_seeds]),
            _spread(of_seeds[0], [claim.same_engine for claim in of_seeds]),
        )
    return table


def _spread(claim: Claim, values: list[float]) -> str:
    middle = sorted(values)[len(values) // 2]
    mark = " *" if not abs(claim.off(middle)) <= TOLERANCE else "  "
    return f"{middle:.2f} ({min(values):.2f}-{max(values):.2f}) {claim.off(middle):+4.0%}{mark}"


def _curve_table(engines: Engines, lengths: tuple[int, int]) -> Table:
    """Mean latencies at the paper's client counts."""
    table = Table(title=f"Mean latency in seconds, p{lengths[0]}/g{lengths[1]}: paper, simulated")
    for name in ("clients", "FastGen", "SplitFuse", "off", "vLLM", "prefill-first", "off", "same"):
        table.add_column(name, justify="right")
    ours = _latencies(splitfuse(engines.fastgen), lengths)
    theirs = _latencies(prefill_first(engines.vllm), lengths)
    same = _latencies(prefill_first(engines.fastgen), lengths)
    for index, clients in enumerate(reported.CLIENTS):
        fastgen = reported.FASTGEN_LATENCY_S[lengths][index]
        vllm = reported.VLLM_LATENCY_S[lengths][index]
        table.add_row(
            str(clients),
            f"{fastgen:.1f}",
            f"{ours[index]:.1f}",
            f"{ours[index] / fastgen - 1:+.0%}",
            f"{vllm:.1f}",
            f"{theirs[index]:.1f}",
            f"{theirs[index] / vllm - 1:+.0%}",
            f"{same[index]:.1f}",
        )
    return table


def _latencies(arm: Arm, lengths: tuple[int, int]) -> list[float]:
    return [s.latency_s.mean if s.latency_s else 0.0 for s in sweep(arm, lengths, FIRST_SEED)]


def _scaling_table(scaling: dict[int, float]) -> Table:
    table = Table(title="Replicas, p2600/g60, 16 clients each, requests/s")
    for name in ("replicas", "paper", "simulated", "times one"):
        table.add_column(name, justify="right")
    for replicas, rate in scaling.items():
        paper = reported.REPLICA_REQUESTS_PER_S.get(replicas)
        table.add_row(
            str(replicas),
            f"{paper:.2f}" if paper else "",
            f"{rate:.2f}",
            f"{rate / scaling[1]:.2f}",
        )
    return table


def _print_differences(console: Console, engines: Engines) -> None:
    theirs = prefill_first(engines.vllm)
    share = late_gap_share(theirs, FIRST_SEED)
    prompt, output = reported.TOKEN_LATENCY_LENGTHS
    shorter = round(EARLY_END * output)
    early_ms = 1e3 * token_latency(theirs, FIRST_SEED, (prompt, shorter)).p90
    ours_ms = 1e3 * token_latency(splitfuse(engines.fastgen), FIRST_SEED, (prompt, shorter)).p90
    console.print(
        f"P90: {share:.1%} of prefill-first's gaps hold a prompt, so P90 stands at the edge of the "
        "cliff between decodes and prompts. The paper's outputs could end early: with means of "
        f"{shorter} tokens P90 is {early_ms:.0f} ms (reported: "
        f"{reported.VLLM_TOKEN_MS['p90']:.0f}), {early_ms / ours_ms:.2f} times ours.\n"
        "Requests/s at equal latency on the same engine: near 9 s most of a request's time is "
        "decoding, which both policies do alike; the rest of the paper's ratio is what vLLM lost "
        "per pass then."
    )


def _document(
    engines: Engines, claims: list[list[Claim]], scaling: dict[int, float]
) -> dict[str, Any]:
    arms = {
        "splitfuse": splitfuse(engines.fastgen),
        "prefill-first, vLLM's engine": prefill_first(engines.vllm),
        "prefill-first, same engine": prefill_first(engines.fastgen),
    }
    return {
        "engines": asdict(engines),
        "claims": [[asdict(claim) for claim in of_seed] for of_seed in claims],
        "replicas": scaling,
        "sweeps": {
            f"p{lengths[0]}/g{lengths[1]}": {
                name: [asdict(summary) for summary in sweep(arm, lengths, FIRST_SEED)]
                for name, arm in arms.items()
            }
            for lengths in reported.LENGTHS
        },
    }


if __name__ == "__main__":
    main()
