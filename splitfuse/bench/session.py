"""One measurement from its first load to its last: runs loads, keeps results, says what it does."""

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from common.errors import StartupError
from common.workload.arrivals import Arrivals
from common.workload.load import Load
from common.workload.load_maker import LoadMaker
from common.workload.plots import can_plot
from common.workload.timeline import Timeline
from splitfuse.bench.drive import drive
from splitfuse.bench.figures import draw_figures
from splitfuse.bench.options import LoadOptions
from splitfuse.bench.process_tree import ProcessTree
from splitfuse.bench.processor import ProcessorClock
from splitfuse.bench.progress import load_progress
from splitfuse.bench.results import Results, Run, make_run, write_results
from splitfuse.bench.tables import markdown, one_line, results_table
from splitfuse.bench.target import Target
from splitfuse.cache import cache_dir


class Session:
    """Runs loads one after the other; the result file is up to date after each.

    Args:
        options: of the verb.
        results: still without runs.
    """

    def __init__(self, options: LoadOptions, results: Results, console: Console) -> None:
        self.loads = LoadMaker(options, options.num_prompts, options.seed)
        self.path = output_path(options.output, results.verb)
        self._options = options
        self._results = results
        self._console = console

    def warm_up(self, target: Target) -> None:
        """Requests that do not count.

        Raises:
            StartupError: none is answered; has the server's words.
        """
        ended: list[Timeline] = []
        load = self.loads.warm_up(self._options.num_warmups)
        if load.shapes:
            drive(load, self._bodies(target, load), target.endpoint, ended.append)
        if ended and all(timeline.failure for timeline in ended):
            raise StartupError(f"no request is answered: {ended[0].failure}")

    def measure(
        self,
        target: Target,
        arrivals: Arrivals,
        *,
        label: str,
        round_number: int = 1,
        num_workers: int | None = None,
        tree: ProcessTree | None = None,
    ) -> Run:
        """Put a load on a server; what it did is in the result file, and said, at the end.

        Args:
            label: of the server in the results.
            num_workers: of the server, if it is ours.
            tree: its processes, if it is ours.

        Raises:
            KeyboardInterrupt: by Ctrl-C; the requests that had ended are kept.
        """
        load = self.loads.load(arrivals, key=f"round {round_number}, {arrivals}")
        what = _describe(label, round_number, load)
        bodies = self._bodies(target, load)
        ended: list[Timeline] = []
        interrupted = True
        clock = ProcessorClock(tree)
        try:
            with load_progress(self._console, what, len(load.shapes)) as progress:

                def on_end(timeline: Timeline) -> None:
                    ended.append(timeline)
                    progress.on_end(timeline)

                limit_s = self._options.request_timeout_s
                drive(load, bodies, target.endpoint, on_end, limit_s=limit_s)
            interrupted = False
        finally:
            run = make_run(
                label,
                round_number,
                load.num_clients,
                ended,
                num_workers=num_workers,
                processor=clock.shares(),
                interrupted=interrupted,
            )
            self._keep(run, what)
        return run

    def finish(self) -> None:
        """Show all results, draw their figures, say where they are."""
        if self._results.runs:
            show(self._results, self.path, self._console, with_plots=self._options.plots)

    def _keep(self, run: Run, what: str) -> None:
        run.summarize(self._results.slas)
        if run.timelines:
            self._results.runs.append(run)
            write_results(self.path, self._results)
        self._console.print(f"{what}: {one_line(run)}", soft_wrap=True, markup=False)

    def _bodies(self, target: Target, load: Load) -> list[bytes]:
        """Prompts are never those of another run: a prefix cache must not know them."""
        return target.bodies(load.shapes, random.Random())  # noqa: S311  no secret


def output_path(given: Path | None, verb: str) -> Path:
    """Where the results go."""
    name = f"{verb}-{datetime.now(UTC):%Y-%m-%dT%H%M%S}.json"
    return (cache_dir() / "bench" / name if given is None else given).absolute()


def show(results: Results, path: Path, console: Console, *, with_plots: bool) -> None:
    """Print the table of a result file; write all measures and draw figures beside it."""
    console.print(results_table(results))
    tables = path.with_suffix(".md")
    tables.write_text(markdown(results), encoding="utf-8")
    console.print(f"All of it is in {path}, tables in {tables}", soft_wrap=True, markup=False)
    if with_plots and can_plot():
        for figure in draw_figures(results, path):
            console.print(f"Figure: {figure}", soft_wrap=True, markup=False)
    elif with_plots:
        console.print("No figures: pip install 'splitfuse[bench]' brings matplotlib", markup=False)


def options_of(options: LoadOptions) -> dict[str, Any]:
    """The options as a result file keeps them: without the key."""
    return options.model_dump(mode="json", exclude={"api_key"})


def _describe(label: str, round_number: int, load: Load) -> str:
    how = f"{load.num_clients} clients" if load.is_closed else "open loop"
    return f"round {round_number}, {label}, {how}"
