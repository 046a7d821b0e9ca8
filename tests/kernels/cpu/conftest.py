"""The CPU library on every instruction set that this machine can run."""

import shutil

import pytest

from kernels.cpu.instruction_set import INSTRUCTION_SETS, InstructionSet
from kernels.cpu.library import CpuLibrary, load_library, supported_instruction_sets


@pytest.fixture(params=INSTRUCTION_SETS)
def library(request: pytest.FixtureRequest) -> CpuLibrary:
    """One for each instruction set; compiled by the first test that needs it."""
    instruction_set: InstructionSet = request.param
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        pytest.skip("no C compiler")
    if instruction_set not in supported_instruction_sets():
        pytest.skip(f"this CPU has no {instruction_set}")
    return load_library(instruction_set)
