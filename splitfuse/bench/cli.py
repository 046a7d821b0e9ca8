"""The verbs of `splitfuse bench`."""

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from pydantic_settings import BaseSettings
from rich.console import Console

from common.config import EXIT_CONFIG, load_config
from common.workload.options import SlaOptions
from splitfuse.bench.calibrate import calibrate
from splitfuse.bench.options import (
    CalibrateConfig,
    ReplicasConfig,
    ReportConfig,
    ServeBenchConfig,
    SweepConfig,
)
from splitfuse.bench.replicas import replicas
from splitfuse.bench.results import read_results
from splitfuse.bench.serve import serve
from splitfuse.bench.session import show
from splitfuse.bench.sweep import sweep

FILE_WIDTH = 160
Config = TypeVar("Config", bound=BaseSettings)


def bench(argv: Sequence[str]) -> int:
    """Run one verb; returns the exit code.

    Raises:
        ConfigError, StartupError: an option, or a server, is no use.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if argv else EXIT_CONFIG
    verb, *rest = argv
    if verb not in VERBS:
        print(f"splitfuse bench: unknown verb {verb!r}\n\n{_help()}", file=sys.stderr)
        return EXIT_CONFIG
    return VERBS[verb][0](rest)


def report(config: ReportConfig, console: Console) -> int:
    """Show a result file again; returns the exit code.

    Raises:
        ConfigError: it is no result file.
    """
    results = read_results(config.file)
    are_given = bool(config.model_fields_set & SlaOptions.model_fields.keys())
    results.summarize(config.slas if are_given else results.slas)
    show(results, config.file.absolute(), console, with_plots=config.plots)
    return 0


def _verb(
    config_class: type[Config], run: Callable[[Config, Console], int]
) -> Callable[[Sequence[str]], int]:
    return lambda argv: run(load_config(config_class, argv), _console())


def _console() -> Console:
    """A file or a pipe has no width: tables must not be cut there."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)


VERBS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "serve": (_verb(ServeBenchConfig, serve), "one load on a server that runs"),
    "sweep": (_verb(SweepConfig, sweep), "scheduling policies over numbers of clients"),
    "replicas": (_verb(ReplicasConfig, replicas), "throughput over numbers of workers"),
    "calibrate": (_verb(CalibrateConfig, calibrate), "what a forward pass costs on this machine"),
    "report": (_verb(ReportConfig, report), "show a result file again, under other SLAs"),
}


def _help() -> str:
    lines = ["usage: splitfuse bench VERB [options]   (... bench VERB --help lists them)", ""]
    return "\n".join([*lines, *(f"  {verb:<12}{text}" for verb, (_, text) in VERBS.items())])
