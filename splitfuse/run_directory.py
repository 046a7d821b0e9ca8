"""A private directory for each running mesh: its sockets, and a note that says where it serves.

Its owner holds a lock on the directory itself, which the kernel releases however the owner ends. So
a directory whose lock is free is a dead mesh's, and whoever comes next removes it.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from common.errors import StartupError

NOTE_FILE = "serving.json"
# A unix socket's path has at most 107 bytes; ours end in "/run-xxxxxxxx/tokenizer/tokenizer-",
# 32 hexadecimal digits and ".sock", which leaves 32 bytes for what comes before.
MAX_ROOT_BYTES = 32


class Serving(msgspec.Struct, frozen=True):
    """What other processes may want to know about a mesh on this machine."""

    pid: int  # of its supervisor
    url: str


@contextmanager
def run_directory() -> Iterator[Path]:
    """A fresh directory, mode 0700, that is gone afterwards.

    Raises:
        StartupError: none can be made.
    """
    try:
        with _locked_root() as root:
            _sweep(root)
            directory = Path(tempfile.mkdtemp(prefix="run-", dir=root))
            descriptor = _try_lock(directory)
    except OSError as error:
        raise StartupError(f"cannot make a run directory: {error}") from error
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)
        with suppress(OSError), _locked_root() as root:
            root.rmdir()  # refused while other meshes run


def write_note(directory: Path, serving: Serving) -> None:
    """Let `find_serving` see the mesh that owns `directory`."""
    part = directory / f".{NOTE_FILE}"
    part.write_bytes(msgspec.json.encode(serving))
    part.rename(directory / NOTE_FILE)


def find_serving() -> list[Serving]:
    """All meshes of this user that run on this machine now and have been ready."""
    if not _root_path().is_dir():
        return []
    found = []
    with _locked_root() as root:
        _sweep(root)
        for note in root.glob(f"run-*/{NOTE_FILE}"):
            with suppress(OSError, msgspec.MsgspecError):
                found.append(msgspec.json.decode(note.read_bytes(), type=Serving))
    return found


def _root_path() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isdir(runtime) and len(os.fsencode(runtime)) + len("/splitfuse") <= MAX_ROOT_BYTES:
        return Path(runtime) / "splitfuse"
    return Path("/tmp") / f"splitfuse-{os.getuid()}"  # noqa: S108  checked to be ours below


@contextmanager
def _locked_root() -> Iterator[Path]:
    """The parent of all run directories, made if missing; one process at a time."""
    root = _root_path()
    while True:
        root.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            info = os.fstat(descriptor)
            if info.st_uid != os.getuid() or stat.S_IMODE(info.st_mode) & 0o077:
                raise StartupError(f"{root} is not a directory of ours with mode 0700: remove it")
            if info.st_nlink:  # else its last user has just removed it: again
                yield root
                return
        finally:
            os.close(descriptor)


def _sweep(root: Path) -> None:
    """Remove what dead meshes left; the caller holds the root's lock, so none is just starting."""
    for directory in root.glob("run-*"):
        descriptor = _try_lock(directory)
        if descriptor is not None:
            shutil.rmtree(directory, ignore_errors=True)
            os.close(descriptor)


def _try_lock(directory: Path) -> int | None:
    """A descriptor that holds the lock, or None if another process does (or it is gone)."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
