"""Compiling the CPU library, keeping it, and choosing between instruction sets."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from common.config import WorkerOptions
from kernels.cpu import instruction_set as isa
from kernels.cpu import library
from kernels.cpu.build import main
from kernels.cpu.compiler import find_compiler
from kernels.cpu.errors import CompileError, CpuLibraryError, NoCompiler, UnsupportedInstructionSet
from kernels.cpu.library import load_library, supported_instruction_sets
from kernels.cpu.library_cache import (
    SOURCES,
    LibraryCache,
    Target,
    default_directory,
    library_target,
)

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("cc", "gcc", "clang")), reason="no C compiler"
)


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """A library of two files and a header that compiles in an instant."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "number.h").write_text("enum { NUMBER = 42 };\n")
    (folder / "answer.c").write_text('#include "number.h"\nint answer(void) { return NUMBER; }\n')
    (folder / "other.c").write_text("int answer(void);\nint other(void) { return -answer(); }\n")
    return Target("tiny", (folder / "answer.c", folder / "other.c"), ("-O0",))


@pytest.fixture
def cache(tmp_path: Path) -> LibraryCache:
    return LibraryCache(tmp_path / "cache")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)


def answer(loaded: ctypes.CDLL) -> int:
    return int(loaded.answer())


def kept(cache: LibraryCache) -> list[Path]:
    return sorted(cache.directory.glob("*.so"))


def counting_compiler(folder: Path) -> tuple[str, Path]:
    """A compiler that notes each run, and its notes."""
    notes, script = folder / "notes", folder / "counting-cc"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *-shared*) echo link >> {notes} ;; esac\nexec cc "$@"\n'
    )
    script.chmod(0o755)
    return str(script), notes


# ── the cache ──────────────────────────────────────────────────────────────────────────────────


def test_a_library_is_compiled_once_and_then_found(target: Target, cache: LibraryCache) -> None:
    assert answer(cache.open(target)) == 42
    (first,) = kept(cache)
    made_ns = first.stat().st_mtime_ns

    assert answer(cache.open(target)) == 42
    assert [path.stat().st_mtime_ns for path in kept(cache)] == [made_ns]
    assert [p for p in cache.directory.iterdir() if p.suffix not in {".so", ".lock"}] == []


def test_another_source_header_or_flag_is_another_library(
    target: Target, cache: LibraryCache
) -> None:
    cache.open(target)

    (target.sources[0].parent / "number.h").write_text("enum { NUMBER = 43 };\n")
    assert answer(cache.open(target)) == 43
    cache.open(Target(target.name, target.sources, ("-O1",)))

    assert len(kept(cache)) == 3


def test_another_compiler_is_another_library(
    target: Target, cache: LibraryCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache.open(target)
    script = tmp_path / "newer-cc"
    script.write_text('#!/bin/sh\n[ "$1" = --version ] && echo newer && exit\nexec cc "$@"\n')
    script.chmod(0o755)

    monkeypatch.setenv("CC", str(script))
    cache.open(target)

    assert len(kept(cache)) == 2


@pytest.mark.parametrize("damage", ["cut", "garbled", "empty"])
def test_a_damaged_file_is_made_again(target: Target, cache: LibraryCache, damage: str) -> None:
    cache.directory.mkdir()
    cache.open(target)
    (path,) = kept(cache)
    whole = path.read_bytes()
    middle = len(whole) // 2
    damaged = {"cut": whole[:middle], "garbled": whole[:middle] + b"x" * middle, "empty": b""}
    path.unlink()  # what is loaded stays as it is
    path.write_bytes(damaged[damage])

    assert answer(cache.open(target)) == 42
    assert path.read_bytes() == whole


def test_a_file_that_others_can_write_is_not_loaded(target: Target, cache: LibraryCache) -> None:
    cache.open(target)
    (path,) = kept(cache)
    path.chmod(0o777)

    assert answer(cache.open(target)) == 42
    assert path.stat().st_mode & 0o777 == 0o755  # made again


def test_processes_that_start_together_compile_once(
    target: Target, cache: LibraryCache, tmp_path: Path
) -> None:
    command, notes = counting_compiler(tmp_path)
    code = (
        "import sys; from pathlib import Path; from kernels.cpu.library_cache import *\n"
        "cache, *sources = map(Path, sys.argv[1:])\n"
        "library = LibraryCache(cache).open(Target('tiny', tuple(sources), ('-O0',)))\n"
        "print(library.answer())"
    )
    arguments = [sys.executable, "-c", code, *map(str, (cache.directory, *target.sources))]

    processes = [
        subprocess.Popen(
            arguments, cwd=ROOT, env={**os.environ, "CC": command}, stdout=subprocess.PIPE
        )
        for _ in range(6)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]

    assert outputs == [b"42\n"] * 6
    assert notes.read_text() == "link\n"


def test_a_cache_that_cannot_be_written_still_serves(target: Target, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert answer(LibraryCache(tmp_path / "file" / "cache").open(target)) == 42


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_error_names_what_was_looked_for(
    target: Target, cache: LibraryCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "own-cc -m64")

    with pytest.raises(NoCompiler, match=r"\$CC \(own-cc -m64\), cc, gcc, clang"):
        cache.open(target)


@pytest.mark.parametrize("where", ["directory", "prebuilt"])
def test_a_compiled_library_needs_no_compiler(
    target: Target,
    cache: LibraryCache,
    where: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    cache.open(target)
    request.getfixturevalue("no_compiler")
    empty = tmp_path / "empty"
    found = cache if where == "directory" else LibraryCache(empty, prebuilt=cache.directory)

    assert answer(found.open(target)) == 42
    assert not empty.exists()


def test_a_compiler_error_ends_with_what_the_compiler_said(
    target: Target, cache: LibraryCache
) -> None:
    target.sources[1].write_text("int other(void) { return undeclared; }\n")

    with pytest.raises(CompileError, match="undeclared") as caught:
        cache.open(target)

    assert "other.c" in str(caught.value)
    assert kept(cache) == []


def test_a_library_that_does_not_load_is_an_error(target: Target, cache: LibraryCache) -> None:
    target.sources[1].write_text("int missing(void);\nint other(void) { return missing(); }\n")

    with pytest.raises(CpuLibraryError, match="missing"):
        cache.open(target)


def test_cc_may_carry_arguments(
    target: Target, cache: LibraryCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "cc -DUNUSED=1")

    assert find_compiler().command == ("cc", "-DUNUSED=1")
    assert answer(cache.open(target)) == 42


def test_the_directory_is_that_of_the_model_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITFUSE_CACHE", "/somewhere")
    assert default_directory() == Path("/somewhere/cpu")

    monkeypatch.delenv("SPLITFUSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_directory() == Path("/xdg/splitfuse/cpu")


# ── instruction sets ───────────────────────────────────────────────────────────────────────────


def cpu_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


@pytest.mark.skipif(
    not Path("/proc/cpuinfo").exists(), reason="the kernel's list of CPU features is not here"
)
def test_those_are_supported_whose_features_the_kernel_lists(cache: LibraryCache) -> None:
    spelling = {"bmi": "bmi1", "avx512bf16": "avx512_bf16"}
    listed = cpu_flags()
    expected = [
        one
        for one in isa.instruction_sets_of_this_machine()
        if all(spelling.get(feature, feature) in listed for feature in isa.features(one))
    ]

    assert list(supported_instruction_sets(cache)) == expected
    assert expected[-1] == "generic"


def test_the_probe_asks_for_what_the_compiler_is_told_to_use() -> None:
    asked = re.findall(r'supports\("(\w+)"\)', (SOURCES / "probe.c").read_text())

    assert asked == list(isa.features("avx512_bf16"))


def test_other_architectures_have_one_library() -> None:
    assert isa.instruction_sets_of("aarch64") == ("generic",)
    assert isa.instruction_sets_of("x86_64") == isa.INSTRUCTION_SETS


def test_an_instruction_set_that_the_cpu_lacks_is_refused(
    cache: LibraryCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "supported_instruction_sets", lambda _: ("avx2", "generic"))

    with pytest.raises(UnsupportedInstructionSet, match=r"avx512; it can run avx2, generic"):
        load_library("avx512", cache)


def test_the_option_offers_every_instruction_set() -> None:
    offered = typing.get_args(WorkerOptions.model_fields["cpu_isa"].annotation)

    assert offered == ("auto", *isa.INSTRUCTION_SETS)


# ── the sources ────────────────────────────────────────────────────────────────────────────────


WARNINGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")


@pytest.mark.parametrize("instruction_set", isa.instruction_sets_of_this_machine())
def test_the_sources_have_no_warnings(instruction_set: isa.InstructionSet) -> None:
    target = library_target(instruction_set)
    command = [*find_compiler().command, *WARNINGS, "-fsyntax-only", *target.flags]

    result = subprocess.run(
        [*command, *map(str, target.sources)], capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stderr


def test_what_the_optimiser_sees_of_the_sources_has_no_warnings_either() -> None:
    command = [*find_compiler().command, *WARNINGS, "-O1", "-S", "-o", os.devnull]

    for source in library_target("generic").sources:
        result = subprocess.run([*command, source], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


def test_the_structs_are_those_of_the_header(cache: LibraryCache, tmp_path: Path) -> None:
    structs = {"sf_buffer": library.Buffer, "sf_op": library.Op, "sf_batch": library.Batch}
    named = [(name, field) for name, struct in structs.items() for field, *_ in struct._fields_]
    numbers = [f"sizeof({name})" for name in structs]
    numbers += [f"offsetof({name}, {field})" for name, field in named]
    source = tmp_path / "layout.c"
    source.write_text(
        f'#include <stddef.h>\n#include "{SOURCES}/splitfuse_cpu.h"\n'
        f"const int layout[] = {{{', '.join(numbers)}}};\n"
    )

    loaded = cache.open(Target("layout", (source,)))

    assert list((ctypes.c_int * len(numbers)).in_dll(loaded, "layout")) == [
        *(ctypes.sizeof(struct) for struct in structs.values()),
        *(getattr(structs[name], field).offset for name, field in named),
    ]


# ── ahead of time ──────────────────────────────────────────────────────────────────────────────


def test_without_a_compiler_nothing_is_built_ahead(
    no_compiler: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--into", str(tmp_path / "built")]) == 1

    assert "no C compiler" in capsys.readouterr().err
