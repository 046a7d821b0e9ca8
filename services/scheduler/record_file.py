"""Records on disk: written whole or not at all, readable by their owner alone, a few at a time."""

import hashlib
import mmap
import os
import platform
import re
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO, Final

import msgpack
import msgspec

from common.errors import RecordError
from services.scheduler import record
from services.scheduler.checkpoint import MAX_CHECKPOINT_BYTES

SUFFIX: Final = ".record"
MAX_FILES: Final = 8  # a scheduler that crashes again and again must not fill the disk
_NAME: Final = re.compile(r".+-\d{8}T\d{6}\.\d{6}Z-\w+\.record")  # as `write_record` names files
MAX_ENTRY_BYTES: Final = MAX_CHECKPOINT_BYTES + 1024
_READ_BYTES: Final = 2**20


def default_directory() -> Path:
    """`splitfuse/records` in $XDG_STATE_HOME, or in ~/.local/state; it may not exist yet."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "splitfuse" / "records"


def made_by() -> str:
    """The code that decides: equal strings decide alike."""
    try:
        release = version("splitfuse")
    except PackageNotFoundError:
        release = "not installed"
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return f"{release}, code {digest.hexdigest()[:12]}, Python {platform.python_version()}"


def write_record(
    directory: Path, scheduler: str, reason: str, parts: Iterable[bytes], made_by: str
) -> Path:
    """Write a record under a name of its own and drop the oldest of too many.

    Args:
        directory: made if it does not exist.
        scheduler: its name in the mesh.
        reason: a word; part of the file's name.
        parts: segments, as `Recorder.snapshot` gives them.
        made_by: see `record.Header`.

    Raises:
        OSError: it could not be written; nothing is left of it.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    now = datetime.now(UTC)
    path = directory / f"{scheduler}-{now:%Y%m%dT%H%M%S.%fZ}-{reason}{SUFFIX}"
    header = record.Header(record.FORMAT, made_by, scheduler, reason, now.isoformat())
    # A temporary file is readable by its owner alone, and so is what it is renamed to.
    with tempfile.NamedTemporaryFile(dir=directory, suffix=".part", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(record.encode(header))
            file.writelines(parts)
            file.close()
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    _drop_oldest(directory)
    return path


def _drop_oldest(directory: Path) -> None:
    """Of files of ours: one that a person has named is there to stay."""
    ours = [path for path in directory.glob(f"*{SUFFIX}") if _NAME.fullmatch(path.name)]
    for path in sorted(ours, key=lambda path: path.stat().st_mtime_ns)[:-MAX_FILES]:
        path.unlink(missing_ok=True)


def read_record(path: Path) -> Iterator[record.Entry]:
    """The entries of a file, the header first, in order.

    Raises:
        RecordError: the file cannot be read, is no record, is damaged, or was written by a version
            that this one does not understand; what came before the damage has been yielded.
    """
    try:
        with path.open("rb") as file:
            yield from _checked(path, _read_entries(file))
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.DecodeError, msgpack.UnpackException, ValueError) as error:
        raise RecordError(f"{path} is no record, or is damaged: {error}") from None


def _read_entries(file: BinaryIO) -> Iterator[record.Entry]:
    """Entries of a stream: msgpack finds where one ends, msgspec reads it by its type."""
    if not os.fstat(file.fileno()).st_size:
        return
    unpacker = msgpack.Unpacker(file, read_size=_READ_BYTES, max_buffer_size=MAX_ENTRY_BYTES)
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = 0
        while start < len(data):
            unpacker.skip()
            end = unpacker.tell()
            yield record.decode(data[start:end])
            start = end


def _checked(path: Path, entries: Iterator[record.Entry]) -> Iterator[record.Entry]:
    """The same entries, if the first two are what a record begins with."""
    header = next(entries, None)
    if not isinstance(header, record.Header):
        raise RecordError(f"{path} does not begin like a record")
    if header.format != record.FORMAT:
        raise RecordError(
            f"{path} is a record of format {header.format}; this version reads {record.FORMAT}"
        )
    yield header
    state = next(entries, None)
    if not isinstance(state, record.StateSaved):
        raise RecordError(f"{path} has no state to begin with")
    yield state
    yield from entries
