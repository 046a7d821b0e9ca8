"""Every implementation of sampling, on threads of its own."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kernels.backend import Sampler
from kernels.cpu.instruction_set import INSTRUCTION_SETS, InstructionSet
from kernels.cpu.library import load_library, supported_instruction_sets
from kernels.cpu.sampler import CpuSampler
from kernels.sampling import ReferenceSampler

SAMPLERS = ("reference", *INSTRUCTION_SETS)


@contextmanager
def make_sampler(name: str, vocab_size: int, num_threads: int = 2) -> Iterator[Sampler]:
    """One of SAMPLERS, or "cpu", which is the best of this machine; skips what cannot run here."""
    if name == "reference":
        yield ReferenceSampler()
        return
    if not any(shutil.which(compiler) for compiler in ("cc", "gcc", "clang")):
        pytest.skip("no C compiler")
    supported = supported_instruction_sets()
    wanted: InstructionSet = next((i for i in INSTRUCTION_SETS if i == name), supported[0])
    if wanted not in supported:
        pytest.skip(f"this CPU has no {wanted}")
    library = load_library(wanted)
    threads = library.functions.pool_create(num_threads, 10)
    try:
        yield CpuSampler(library, threads, vocab_size)
    finally:
        library.functions.pool_destroy(threads)
