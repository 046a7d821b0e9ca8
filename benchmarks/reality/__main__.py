"""Compares the simulator with measurements.

    splitfuse bench calibrate MODEL --output calibration.json
    splitfuse bench sweep MODEL --policies splitfuse --clients 1,4,8,12,16 --output sweep.json
    python -m benchmarks.reality --calibration calibration.json --results sweep.json \\
        --fit-clients 1 8

Prints for each load, as the median of its rounds, what was measured and what the simulator says.
Fitted are the costs of the services around the worker, which no calibration knows, on the loads of
--fit-clients alone.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.reality.fit import fit, measures
from benchmarks.reality.measured import Costs, MeasuredRun, Simulated, measured_runs
from common import calibration_file

TOLERANCE = 0.15
NUM_SEEDS = 3


def main() -> None:
    """Fit, compare, print."""
    arguments = _arguments()
    simulated = Simulated(calibration_file.read(arguments.calibration))
    runs = [run for path in arguments.results for run in measured_runs(path)]
    runs = [run for run in runs if run.server == arguments.server]
    fitted = [run for run in runs if run.num_clients in arguments.fit_clients]
    checked = [run for run in runs if run.num_clients not in arguments.fit_clients]
    costs = fit(simulated, fitted)
    console = Console(width=150)
    console.print(f"Fitted on {len(fitted)} runs: {costs}")
    console.print(_table("Loads that were fitted", simulated, fitted, costs))
    console.print(_table("Loads that were not", simulated, checked, costs))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="compares the simulator with measurements")
    parser.add_argument("--calibration", type=Path, required=True, help="of bench calibrate")
    parser.add_argument("--results", type=Path, nargs="+", required=True, help="of bench sweep")
    parser.add_argument("--server", default="splitfuse", help="label of the runs to look at")
    parser.add_argument("--fit-clients", type=int, nargs="+", required=True)
    return parser.parse_args()


def _table(title: str, simulated: Simulated, runs: Sequence[MeasuredRun], costs: Costs) -> Table:
    """Measured, simulated and the difference; * = more than the tolerance."""
    table = Table(title=f"{title}; * = more than {TOLERANCE:.0%} off")
    for name in ("load", "measure", "measured", "least", "most", "simulated", "off"):
        table.add_column(name)
    by_load: dict[str, list[MeasuredRun]] = {}
    for run in runs:
        by_load.setdefault(run.load_name, []).append(run)
    for load_name, rounds in by_load.items():
        real = [measures(run.summary) for run in rounds]
        found = [
            measures(simulated.summarize(run, costs, seed))
            for run in rounds
            for seed in range(NUM_SEEDS)
        ]
        for name in real[0]:
            values = [of_round[name] for of_round in real]
            value, middle = median(values), median(of_seed[name] for of_seed in found)
            off = middle / value - 1 if value else 0.0
            mark = " *" if abs(off) > TOLERANCE else ""
            numbers = (f"{x:.4g}" for x in (value, min(values), max(values), middle))
            table.add_row(load_name, name, *numbers, f"{off:+.1%}{mark}")
        table.add_section()
    return table


if __name__ == "__main__":
    main()
