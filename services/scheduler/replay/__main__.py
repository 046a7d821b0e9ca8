"""`python -m services.scheduler.replay FILE`: see `--help` for its options.

Exit codes: 0 alike, or a what-if answered; 1 a decision came out otherwise; 2 unusable file or
option; 130 interrupted.
"""

import sys
import time
from collections.abc import Sequence
from typing import Final

from rich.console import Console

from common.config import EXIT_CONFIG, load_config
from common.errors import ConfigError, RecordError
from services.scheduler import record
from services.scheduler.record_file import made_by, read_record
from services.scheduler.replay.options import ReplayConfig, changed_options
from services.scheduler.replay.recorded_load import read_load
from services.scheduler.replay.report import (
    made_by_lines,
    reproduction_lines,
    what_if_lines,
    what_if_table,
)
from services.scheduler.replay.reproduction import reproduce
from services.scheduler.replay.what_if import what_if

EXIT_DIFFERENT: Final = 1
EXIT_INTERRUPTED: Final = 130
MIN_WIDTH: Final = 120  # of a table that goes to a file


def main(argv: Sequence[str] | None = None) -> int:
    """Replay a record; returns the exit code."""
    try:
        config = load_config(ReplayConfig, argv)
        return _what_if(config) if config.is_what_if else _reproduce(config)
    except (ConfigError, RecordError) as error:
        print(f"splitfuse replay: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _reproduce(config: ReplayConfig) -> int:
    entries = read_record(config.file)
    header = next(entries)
    assert isinstance(header, record.Header)  # noqa: S101  read_record has looked
    began = time.perf_counter()
    result = reproduce(entries)
    wall_s = time.perf_counter() - began
    different = result.divergence is not None
    lines = made_by_lines(header, made_by()) if different else []
    print(*lines, *reproduction_lines(result, wall_s), sep="\n")
    return EXIT_DIFFERENT if different else 0


def _what_if(config: ReplayConfig) -> int:
    entries = read_record(config.file)
    next(entries)  # the header
    load = read_load(entries)
    answer = what_if(load, changed_options(load.options, config))
    console = Console()
    (console if console.is_terminal else Console(width=MIN_WIDTH)).print(what_if_table(answer))
    print(*what_if_lines(answer), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
