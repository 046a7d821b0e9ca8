"""Compiled libraries on disk: found, or compiled once and kept.

A file is named `TARGET-SOURCES-COMPILER-CONTENT.so`: what it was made of (sources, flags and
architecture; the compiler's version) and a hash of its own bytes. So a change of any of these is
another file, a damaged file no longer fits its name, and a file is complete as soon as it has its
name, since it gets that by a rename.
"""

import ctypes
import fcntl
import hashlib
import os
import platform
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernels.cpu import instruction_set as isa
from kernels.cpu.compiler import Compiler, common_flags, find_compiler
from kernels.cpu.errors import CompileError, NoCompiler

SOURCES: Final = Path(__file__).parent / "src"
_PROBE: Final = "probe.c"


@dataclass(frozen=True, slots=True)
class Target:
    """One shared library that can be made."""

    name: str
    sources: tuple[Path, ...]  # .c files
    flags: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Names what the library is made of; headers count, whoever includes them."""
        files = sorted({*self.sources, *(h for s in self.sources for h in s.parent.glob("*.h"))})
        return _digest(
            platform.machine().encode(),
            " ".join([*common_flags(), *self.flags]).encode(),
            *(part for file in files for part in (file.name.encode(), file.read_bytes())),
        )


def library_target(instruction_set: isa.InstructionSet) -> Target:
    """All of the backend, for one instruction set."""
    sources = sorted(path for path in SOURCES.glob("*.c") if path.name != _PROBE)
    return Target(instruction_set, tuple(sources), isa.flags(instruction_set))


def probe_target() -> Target:
    """What tells which instruction sets this CPU can run."""
    return Target("probe", (SOURCES / _PROBE,))


def cache_root() -> Path:
    """$SPLITFUSE_CACHE, else `splitfuse` in $XDG_CACHE_HOME or ~/.cache; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = os.environ.get("SPLITFUSE_CACHE") or f"{base}/splitfuse"
    return Path(root).expanduser().absolute()


def default_directory() -> Path:
    """Where compiled libraries are kept for this user."""
    return cache_root() / "cpu"


@dataclass(frozen=True, slots=True)
class LibraryCache:
    """Where libraries are looked for and kept.

    Args:
        directory: of the user; made when first needed. One that cannot be written costs a
            compilation at every start.
        prebuilt: looked at first and never written; made by `python -m kernels.cpu.build`. It
            serves without a compiler.
    """

    directory: Path
    prebuilt: Path | None = None

    def open(self, target: Target) -> ctypes.CDLL:
        """Load a library, compiled now if it has to be.

        Raises:
            NoCompiler: it has to be compiled and cannot.
            CompileError: the compiler fails, or what it makes does not load.
        """
        if self.prebuilt is not None and (library := _find(self.prebuilt, target)) is not None:
            return library
        try:
            compiler = find_compiler()
        except NoCompiler:
            # Made by a compiler that is no longer there, and as good.
            library = _find(self.directory, target)
            if library is None:
                raise
            return library
        return _find(self.directory, target, compiler) or self._compile(target, compiler)

    def _compile(self, target: Target, compiler: Compiler) -> ctypes.CDLL:
        try:
            with _locked(self.directory, target):
                library = _find(self.directory, target, compiler)  # by whoever had the lock before
                return library or _load_new(build_into(self.directory, target, compiler))
        except OSError:  # of the directory: read-only, full, without locks
            return _compile_for_this_process(target, compiler)


def build_into(directory: Path, target: Target, compiler: Compiler) -> Path:
    """Compile a library into a directory that exists; others see it whole or not at all.

    Raises:
        CompileError: the compiler fails.
        OSError: the directory cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=directory, prefix=f".{target.name}-") as folder:
        made = Path(folder) / "library.so"
        compiler.compile(target.sources, target.flags, made)
        made.chmod(0o755)
        name = f"{_prefix(target, compiler)}-{_digest(made.read_bytes())}.so"
        return made.replace(directory / name)


def _compile_for_this_process(target: Target, compiler: Compiler) -> ctypes.CDLL:
    """A loaded library outlives its file."""
    try:
        with tempfile.TemporaryDirectory(prefix="splitfuse-") as directory:
            return _load_new(build_into(Path(directory), target, compiler))
    except OSError as error:
        raise CompileError(f"there is no directory to compile in: {error}") from error


def _prefix(target: Target, compiler: Compiler) -> str:
    return f"{target.name}-{target.key}-{_digest(compiler.version.encode())}"


def _find(directory: Path, target: Target, compiler: Compiler | None = None) -> ctypes.CDLL | None:
    """A library that is there, of this compiler or (None) of any; None if none is usable."""
    prefix = f"{target.name}-{target.key}" if compiler is None else _prefix(target, compiler)
    for path in sorted(directory.glob(f"{prefix}-*.so")):
        if _is_trusted(path) and _is_whole(path):
            try:
                return ctypes.CDLL(str(path))
            except OSError:  # made for another C library than this system's
                continue
    return None


def _load_new(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CompileError(f"the compiled library does not load: {error}") from error


def _is_trusted(path: Path) -> bool:
    """Whether nobody but us and root can have written it: its code will run as us."""
    try:
        status = path.stat()
    except OSError:
        return False
    others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISREG(status.st_mode) and status.st_uid in {0, os.getuid()} and not others_write


def _is_whole(path: Path) -> bool:
    """Whether the bytes fit the name; loading a file that lost its end can kill the process."""
    try:
        return path.stem.rpartition("-")[2] == _digest(path.read_bytes())
    except OSError:
        return False


@contextmanager
def _locked(directory: Path, target: Target) -> Iterator[None]:
    """Alone among processes that compile this target, so that of many starts one compiles."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f".{target.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(*parts: bytes) -> str:
    """Sixteen hex digits that name these parts, in this order."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little") + part)
    return hashed.hexdigest()[:16]
