"""The system's C compiler: finding it, and making one shared library with it."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernels.cpu.errors import CompileError, NoCompiler

# No -ffast-math: it would break NaN, and the order of sums that makes rows independent of a batch.
_FLAGS: Final = ("-O3", "-std=gnu11", "-fPIC", "-fno-math-errno", "-pthread")
_LINK_FLAGS: Final = ("-shared", "-pthread")
_LIBRARIES: Final = ("-lm",)

_NAMES: Final = ("cc", "gcc", "clang")
_TIMEOUT_S: Final = 300.0
_LINES_KEPT: Final = 20


def common_flags() -> tuple[str, ...]:
    """Of all files and instruction sets; $CFLAGS comes last, as everywhere."""
    return (*_FLAGS, *shlex.split(os.environ.get("CFLAGS", "")))


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler that answered when asked for its version."""

    command: tuple[str, ...]
    version: str

    def compile(self, sources: Sequence[Path], flags: Sequence[str], library: Path) -> None:
        """Make one shared library of C files, side by side; leaves objects next to it.

        Raises:
            CompileError: a file does not compile, or they do not link.
        """
        flags = (*common_flags(), *flags)
        objects = [library.parent / f"{source.stem}.o" for source in sources]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(
                pool.map(
                    lambda source, target: self._run(*flags, "-c", source, "-o", target),
                    sources,
                    objects,
                )
            )
        self._run(*_LINK_FLAGS, *flags, *objects, "-o", library, *_LIBRARIES)

    def _run(self, *arguments: str | Path) -> None:
        command = [*self.command, *map(str, arguments)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompileError(f"{shlex.join(command)}: {error}") from error
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()[-_LINES_KEPT:]
            raise CompileError("\n".join([f"{shlex.join(command)} failed:", *lines]))


def find_compiler() -> Compiler:
    """The first of $CC, cc, gcc and clang that runs.

    Raises:
        NoCompiler: none does.
    """
    own = os.environ.get("CC", "")
    candidates = [*([own] if own else []), *_NAMES]
    for candidate in candidates:
        compiler = _ask(tuple(shlex.split(candidate)))
        if compiler is not None:
            return compiler
    looked_for = ", ".join([*([f"$CC ({own})"] if own else []), *_NAMES])
    raise NoCompiler(f"no C compiler: looked for {looked_for}")


def find_compiler_if_any() -> Compiler | None:
    """`find_compiler`, where a compiled library may do as well."""
    try:
        return find_compiler()
    except NoCompiler:
        return None


def _ask(command: tuple[str, ...]) -> Compiler | None:
    if not command or shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, errors="replace", timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return Compiler(command, done.stdout) if done.returncode == 0 else None
