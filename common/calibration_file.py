"""What `splitfuse bench calibrate` measures of one worker, as a JSON file.

Written by `services.worker.calibrate`, plotted by the bench, and what `splitfuse simulate
--calibration` predicts pass times from.
"""

from pathlib import Path
from typing import Final

import msgspec

from common.errors import ConfigError
from common.messages import StepTiming

LAYOUT: Final = 1  # raised when the meaning of anything in the file changes
_MAX_FILE_BYTES: Final = 2**24


class CurvePoint(msgspec.Struct, frozen=True):
    """A pass of one chunk of a prompt."""

    num_tokens: int
    context: int  # tokens of its sequence before it
    ms: float
    tokens_per_s: float


class CalibrationFile(msgspec.Struct, frozen=True):
    """Timings of many shapes, and those of single chunks once more, to be read by people."""

    machine: str  # make of the device, and how many threads compute on a CPU
    model: str
    device: str
    backend: str
    dtype: str
    curve: tuple[CurvePoint, ...]  # by context, then by tokens
    #: the curve's passes and all others; each an array in the order of `StepTiming`'s fields
    timings: tuple[StepTiming, ...]
    layout: int = LAYOUT


def encode(calibration: CalibrationFile) -> bytes:
    """As indented JSON, with a newline at the end."""
    return msgspec.json.format(msgspec.json.encode(calibration)) + b"\n"


def read(path: Path) -> CalibrationFile:
    """Read a file that `encode` wrote.

    Raises:
        ConfigError: it cannot be read, or is no calibration of this layout.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {_MAX_FILE_BYTES} bytes: no calibration")
        calibration = msgspec.json.decode(content, type=CalibrationFile)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} is no calibration: {error}") from None
    if calibration.layout != LAYOUT:
        raise ConfigError(
            f"{path} is a calibration of layout {calibration.layout}; this version reads {LAYOUT}"
        )
    return calibration
