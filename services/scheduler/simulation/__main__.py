"""`python -m services.scheduler.simulation simulate|plan`: see `--help` of each."""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from common.config import EXIT_CONFIG, load_config
from common.errors import ConfigError
from services.scheduler.simulation.comparison import compare
from services.scheduler.simulation.devices import Simulated, make_machine
from services.scheduler.simulation.options import PlanConfig, SimulateConfig
from services.scheduler.simulation.planning import Candidate, make_plan, objective_of
from services.scheduler.simulation.report import draw_figures, outcomes_table, write_json

EXIT_NOT_MET = 1
EXIT_INTERRUPTED = 130
MIN_WIDTH = 240  # of tables that go to a file


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    verb, *rest = sys.argv[1:] if argv is None else argv or ("",)
    if verb not in VERBS:
        print(f"usage: splitfuse {'|'.join(VERBS)} [options]", file=sys.stderr)
        return EXIT_CONFIG
    try:
        return VERBS[verb](rest)
    except ConfigError as error:
        print(f"splitfuse {verb}: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _simulate(argv: Sequence[str]) -> int:
    config = load_config(SimulateConfig, argv)
    simulated = make_machine(config)
    console = _console()
    outcomes = []
    with console.status("simulating") as status:
        for outcome in compare(config, simulated.machine):
            outcomes.append(outcome)
            status.update(f"{outcome.policy}, {outcome.num_workers} workers, {outcome.load}")
    console.print(outcomes_table(outcomes, config.slas))
    _print_assumptions(console, simulated)
    simulated_s, wall_s = sum(o.duration_s for o in outcomes), sum(o.wall_s for o in outcomes)
    console.print(
        f"{simulated_s:,.0f} s simulated in {wall_s:.1f} s: {simulated_s / wall_s:,.0f} times as "
        "fast as real time"
    )
    if config.json_file is not None:
        write_json(config.json_file, simulated.assumptions, outcomes)
    if config.plots is not None:
        draw_figures(config.plots, outcomes, config.slas)
    return 0


def _plan(argv: Sequence[str]) -> int:
    config = load_config(PlanConfig, argv)
    simulated = make_machine(config)
    console = _console()
    with console.status("simulating"):
        candidates = list(make_plan(config, simulated.machine))
    console.print(_candidates_table(candidates))
    _print_assumptions(console, simulated)
    console.print(_answer(config, candidates))
    if config.json_file is not None:
        write_json(config.json_file, simulated.assumptions, [c.outcome for c in candidates])
    return 0 if any(c.is_met for c in candidates) else EXIT_NOT_MET


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=MIN_WIDTH)


def _print_assumptions(console: Console, simulated: Simulated) -> None:
    console.print("Assumed:")
    for sentence in simulated.assumptions:
        console.print(f"  - {sentence}", highlight=False)


def _candidates_table(candidates: Iterable[Candidate]) -> Table:
    table = Table("tokens per pass", "workers", "met", "requests/s", "SLA share")
    for title in ("TTFT P99 ms", "TBT P99 ms", "busy %"):
        table.add_column(title)
    for candidate in candidates:
        outcome, summary = candidate.outcome, candidate.outcome.summary
        table.add_row(
            "as found" if candidate.token_budget is None else str(candidate.token_budget),
            str(outcome.num_workers),
            "yes" if candidate.is_met else "no",
            f"{summary.requests_per_s:.2f}",
            f"{summary.goodput[0].share:.3f}",
            f"{1e3 * summary.ttft_s.p99:,.0f}" if summary.ttft_s else "–",
            f"{1e3 * summary.tbt_s.p99:,.1f}" if summary.tbt_s else "–",
            f"{100 * outcome.busy_share:.0f}",
        )
    return table


def _answer(config: PlanConfig, candidates: Sequence[Candidate]) -> str:
    met = [candidate for candidate in candidates if candidate.is_met]
    objective = objective_of(config)
    if not met:
        return f"Not met with {_replicas(config.max_workers)}: {objective}."
    best = min(met, key=lambda c: c.outcome.num_workers)  # of equals the first: the scheduler's own
    flag = (
        "the scheduler's own budget"
        if best.token_budget is None
        else f"--max-num-batched-tokens {best.token_budget}"
    )
    num_gpus = best.outcome.num_workers * config.tensor_parallel_size
    gpus = f" ({num_gpus} x {config.gpu})" if config.gpu else ""
    return f"{_replicas(best.outcome.num_workers)}{gpus} with {flag}: {objective}."


def _replicas(count: int) -> str:
    return f"{count} replica{'s' if count > 1 else ''}"


VERBS = {"simulate": _simulate, "plan": _plan}

if __name__ == "__main__":
    raise SystemExit(main())
