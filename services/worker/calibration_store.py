"""Calibrations on disk, one file for each thing that a pass's time depends on.

A file is only ever an aid: one that is missing, damaged, of another layout or of something else is
as good as none, and one that cannot be written costs the next start a calibration.
"""

import hashlib
import importlib.metadata
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from common.config import WorkerOptions
from common.messages import StepTiming, WorkerJoin
from kernels.cpu.library_cache import cache_root
from services.worker.calibration import calibrate, room_tokens
from services.worker.device import num_threads
from services.worker.device_name import device_name
from services.worker.engine import Engine
from services.worker.models.config import CONFIG_FILE

LAYOUT: Final = 1  # of the file; raised when the meaning of anything in it changes
MAX_FILE_BYTES: Final = 2**20

logger = structlog.get_logger(__name__)


class CalibrationKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a pass's time depends on, beside its shape."""

    model: str  # digest of its config.json: weights of one shape take one time
    device: str  # of which make
    backend: str
    dtype: str
    num_threads: int  # that compute; 0 on a GPU
    cpu_isa: str  # as asked for
    block_size: int  # tokens per KV block
    room_tokens: int  # longest context that was measured
    version: str  # of splitfuse


class _File(msgspec.Struct, forbid_unknown_fields=True):
    layout: int
    key: CalibrationKey
    timings: tuple[StepTiming, ...]


def make_key(model_dir: Path, options: WorkerOptions, join: WorkerJoin) -> CalibrationKey:
    """The key of a loaded engine.

    Args:
        join: what the engine announces.
    """
    on_cpu = join.device == "cpu"
    return CalibrationKey(
        model=_digest((model_dir / CONFIG_FILE).read_bytes()),
        device=device_name(join.device),
        backend=join.backend,
        dtype=join.dtype,
        num_threads=num_threads(options.cpu_threads) if on_cpu else 0,
        cpu_isa=options.cpu_isa if on_cpu else "",
        block_size=join.block_size,
        room_tokens=room_tokens(join),
        version=_version(),
    )


def default_directory() -> Path:
    """`calibration` in the user's cache."""
    return cache_root() / "calibration"


def known_or_measured(
    engine: Engine,
    model_dir: Path,
    options: WorkerOptions,
    now: Callable[[], float],
    checkpoint: Callable[[], None],
) -> tuple[StepTiming, ...]:
    """The calibration of a loaded engine: kept from an earlier start, or measured now and kept.

    Args:
        engine: without sequences; left so.
        now: seconds, monotonic.
        checkpoint: called before each pass; may raise to give up.
    """
    store, key = CalibrationStore(default_directory()), make_key(model_dir, options, engine.join)
    known = store.load(key)
    if known is not None:
        return known
    began = now()
    measured = tuple(calibrate(engine, now, checkpoint=checkpoint).values())
    logger.info("passes measured", num_passes=len(measured), seconds=round(now() - began, 2))
    store.save(key, measured)
    return measured


@dataclass(frozen=True, slots=True)
class CalibrationStore:
    """Files of one directory, which is made when first needed."""

    directory: Path

    def load(self, key: CalibrationKey) -> tuple[StepTiming, ...] | None:
        """What was saved under an equal key; None if nothing usable was."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                saved = msgspec.json.decode(file.read(MAX_FILE_BYTES), type=_File)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            logger.warning("calibration ignored", path=str(path), reason=str(error))
            return None
        if saved.layout != LAYOUT or saved.key != key:
            logger.warning("calibration ignored", path=str(path), reason="it is of something else")
            return None
        return saved.timings

    def save(self, key: CalibrationKey, timings: tuple[StepTiming, ...]) -> None:
        """Keep timings; others see the whole file or none."""
        path = self._path(key)
        content = msgspec.json.format(msgspec.json.encode(_File(LAYOUT, key, timings)))
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                dir=self.directory, prefix=f".{path.name}-", delete=False
            ) as file:
                file.write(content)
            os.replace(file.name, path)
        except OSError as error:
            logger.warning("calibration not kept", path=str(path), reason=str(error))

    def _path(self, key: CalibrationKey) -> Path:
        return self.directory / f"{_digest(msgspec.json.encode(key))}.json"


def _digest(content: bytes) -> str:
    """Sixteen hex digits that name this content."""
    return hashlib.sha256(content).hexdigest()[:16]


def _version() -> str:
    try:
        return importlib.metadata.version("splitfuse")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # run from a source tree that was never installed
