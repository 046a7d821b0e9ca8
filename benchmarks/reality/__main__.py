"""Compares the simulator with measurements.

    splitfuse bench calibrate MODEL --output calibration.json
    splitfuse bench serve ... --output fitted.json      (and others, for the comparison)
    python -m benchmarks.reality --calibration calibration.json --fit fitted.json --check other.json

Prints for each load what was measured and what the simulator says; fitted are the costs of the
services around the worker, which no calibration knows, on the loads of --fit alone.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

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
    fitted = [run for path in arguments.fit for run in measured_runs(path)]
    checked = [run for path in arguments.check for run in measured_runs(path)]
    costs = fit(simulated, fitted)
    console = Console(width=150)
    console.print(f"Fitted on {len(fitted)} loads: {costs}")
    console.print(_table("Loads that were fitted", simulated, fitted, costs))
    if checked:
        console.print(_table("Loads that were not", simulated, checked, costs))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="compares the simulator with measurements")
    parser.add_argument("--calibration", type=Path, required=True, help="of bench calibrate")
    parser.add_argument("--fit", type=Path, nargs="+", required=True, help="bench result files")
    parser.add_argument("--check", type=Path, nargs="*", default=[], help="bench result files")
    return parser.parse_args()


def _table(title: str, simulated: Simulated, runs: Sequence[MeasuredRun], costs: Costs) -> Table:
    """Measured, simulated and the difference; * = more than the tolerance."""
    table = Table(title=f"{title}; * = more than {TOLERANCE:.0%} off")
    for name in ("load", "measure", "measured", "simulated", "off"):
        table.add_column(name)
    for run in runs:
        found = [measures(simulated.summarize(run, costs, seed)) for seed in range(NUM_SEEDS)]
        for name, value in measures(run.summary).items():
            middle = sorted(of_seed[name] for of_seed in found)[NUM_SEEDS // 2]
            off = middle / value - 1 if value else 0.0
            mark = " *" if abs(off) > TOLERANCE else ""
            table.add_row(run.name, name, f"{value:.4g}", f"{middle:.4g}", f"{off:+.1%}{mark}")
        table.add_section()
    return table


if __name__ == "__main__":
    main()
