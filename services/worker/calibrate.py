"""`python -m services.worker.calibrate MODEL --json FILE`: measure passes at leisure.

What `splitfuse bench calibrate` runs: tokens per pass against time behind short and long contexts,
and what a start measures, too. Later starts find the result as their own calibration.
"""

import sys
import time
from pathlib import Path
from typing import Final

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from common import log
from common.calibration_file import CalibrationFile, CurvePoint, encode
from common.config import (
    EXIT_CONFIG,
    ModelOptions,
    Seconds,
    Settings,
    WorkerOptions,
    config_or_exit,
)
from common.errors import ConfigError, StartupError
from common.lifecycle import EXIT_START
from common.messages import StepTiming
from services.worker.openmp import limit_spinning

SIZES: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)
CONTEXTS: Final = (0, 512, 1024)
#: decodes of several contexts for each number of sequences: (sequences, tokens of each)
DECODES: Final = ((1, 2032), (2, 2032), (4, 1520), (8, 1008), (16, 496), (32, 240), (64, 112))


class CalibrateConfig(WorkerOptions, ModelOptions, Settings):
    """Measure what forward passes of a model cost on this machine."""

    model_config = SettingsConfigDict(
        cli_prog_name="python -m services.worker.calibrate", cli_shortcuts={"output": "json"}
    )

    model: CliPositionalArg[Path] = Field(description="model directory in Hugging Face layout")
    output: Path | None = Field(None, description="JSON file for the result; default: print it")
    seconds: Seconds = Field(60.0, description="time to measure in, at most")


def main() -> int:
    """Measure once; returns the exit code."""
    config = config_or_exit(CalibrateConfig)
    log.configure("info", "console", service="worker", name="calibrate")
    limit_spinning()
    try:
        result = encode(measure(config))
        if config.output is None:
            sys.stdout.buffer.write(result)
        else:
            config.output.write_bytes(result)
    except ConfigError as error:
        return _fail(str(error), EXIT_CONFIG)
    except StartupError as error:
        return _fail(str(error), EXIT_START)
    except OSError as error:
        return _fail(f"cannot write {config.output}: {error.strerror}", EXIT_CONFIG)
    return 0


def measure(config: CalibrateConfig) -> CalibrationFile:
    """Load the model, and measure it.

    Raises:
        ConfigError, StartupError: as of `Engine`.
    """
    # Only now: it may import torch, which reads what `limit_spinning` sets.
    from services.worker.calibration import STARTUP_PASSES, Pass, calibrate, curve_passes
    from services.worker.calibration_store import CalibrationStore, default_directory, make_key
    from services.worker.engine import Engine

    engine = Engine(config.model, config, config.max_model_len)
    curve = curve_passes(SIZES, CONTEXTS)
    others = (*STARTUP_PASSES, *(Pass(count, context) for count, context in DECODES))
    timings = calibrate(
        engine, time.monotonic, tuple(dict.fromkeys((*curve, *others))), time_limit_s=config.seconds
    )
    key = make_key(config.model, config, engine.join)
    CalibrationStore(default_directory()).save(key, tuple(timings.values()))
    threads = f", {key.num_threads} threads" if key.num_threads else ""
    return CalibrationFile(
        machine=f"{key.device}{threads}",
        model=engine.join.model,
        device=engine.join.device,
        backend=engine.join.backend,
        dtype=engine.join.dtype,
        curve=tuple(_point(timings[p]) for p in curve if p in timings),
        timings=tuple(timings.values()),
    )


def _point(timing: StepTiming) -> CurvePoint:
    """Of a pass that is one chunk."""
    ms = timing.step_ns / 1e6
    return CurvePoint(
        num_tokens=timing.num_tokens,
        context=timing.num_context_tokens - timing.num_tokens,
        ms=ms,
        tokens_per_s=1e3 * timing.num_tokens / ms,
    )


def _fail(reason: str, code: int) -> int:
    print(f"calibrate: {reason}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
