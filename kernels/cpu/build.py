"""Compile the CPU library ahead of its first use: python -m kernels.cpu.build [--all] [--into DIR].

For images, whose build has a compiler and whose containers need not have one. Needs nothing but
the standard library.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kernels.cpu.compiler import find_compiler
from kernels.cpu.errors import CpuLibraryError
from kernels.cpu.instruction_set import instruction_sets_of_this_machine
from kernels.cpu.library import supported_instruction_sets
from kernels.cpu.library_cache import (
    LibraryCache,
    build_into,
    default_directory,
    library_target,
    probe_target,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Compile and print the paths of what was made; 1 if the compiler fails or is not there."""
    parser = argparse.ArgumentParser(prog="python -m kernels.cpu.build", description=__doc__)
    parser.add_argument(
        "--all", action="store_true", help="every instruction set, not the best of this CPU only"
    )
    parser.add_argument("--into", type=Path, default=default_directory(), metavar="DIR")
    options = parser.parse_args(argv)
    try:
        for path in build(options.into, all_of_them=options.all):
            print(path)
    except (CpuLibraryError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


def build(directory: Path, all_of_them: bool) -> list[Path]:
    """Compile the probe and the library into a directory, whether or not they are there.

    Raises:
        CpuLibraryError: there is no compiler, or it fails.
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    compiler = find_compiler()
    paths = [build_into(directory, probe_target(), compiler)]
    chosen = (
        instruction_sets_of_this_machine()
        if all_of_them
        else supported_instruction_sets(LibraryCache(directory))[:1]
    )
    return paths + [build_into(directory, library_target(one), compiler) for one in chosen]


if __name__ == "__main__":
    raise SystemExit(main())
