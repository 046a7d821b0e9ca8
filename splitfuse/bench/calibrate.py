"""`splitfuse bench calibrate`: what a forward pass costs here, over its tokens."""

import os
import shlex
import subprocess
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.calibration_file import CalibrationFile, CurvePoint
from common.calibration_file import read as read_calibration
from common.errors import StartupError
from common.workload.plots import Point, can_plot, plot_pass_time
from splitfuse.app_tree import python_command, python_environment
from splitfuse.bench.options import CalibrateConfig
from splitfuse.bench.own_server import local_model
from splitfuse.bench.session import output_path

MODULE = "services.worker.calibrate"


def calibrate(config: CalibrateConfig, console: Console) -> int:
    """Measure, show and draw; returns the exit code.

    Raises:
        ConfigError, StartupError: an option or the model is no use.
    """
    path = output_path(config.output, "calibrate")
    path.parent.mkdir(parents=True, exist_ok=True)
    _measure(local_model(config.model), shlex.split(config.worker_flags), path)
    calibration = read_calibration(path)
    console.print(_table(calibration))
    console.print(f"All of it is in {path}", soft_wrap=True, markup=False)
    if config.plots and can_plot():
        figure = path.with_name(f"{path.stem}-pass-time.png")
        plot_pass_time(figure, _curves(calibration))
        console.print(f"Figure: {figure}", soft_wrap=True, markup=False)
    elif config.plots:
        console.print("No figure: pip install 'splitfuse[bench]' brings matplotlib", markup=False)
    return 0


def _measure(model: Path, flags: list[str], path: Path) -> None:
    """In a process of its own: the public face computes nothing."""
    command = [*python_command(MODULE), str(model), f"--json={path}", *flags]
    done = subprocess.run(command, env=python_environment(os.environ), check=False)
    if done.returncode != 0:
        raise StartupError(f"the calibration ended with exit code {done.returncode}")


def _table(calibration: CalibrationFile) -> Table:
    table = Table("context", "tokens in the pass", "ms", "tokens/s")
    for point in calibration.curve:
        table.add_row(
            str(point.context),
            str(point.num_tokens),
            f"{point.ms:,.2f}",
            f"{point.tokens_per_s:,.0f}",
        )
    return table


def _curves(calibration: CalibrationFile) -> dict[str, list[Point]]:
    """By context."""
    contexts: dict[int, list[CurvePoint]] = {}
    for point in calibration.curve:
        contexts.setdefault(point.context, []).append(point)
    return {
        f"{context} tokens before it": [Point(point.num_tokens, point.ms) for point in points]
        for context, points in contexts.items()
    }
