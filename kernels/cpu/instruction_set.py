"""The instruction sets that the CPU library is compiled for, and what each needs.

Four, not one per CPU: a library for "the CPU this runs on" could not be built into an image, and
between these four lie all the differences that the sources know of (`src/simd.h`).
"""

import platform
from typing import Final, Literal, TypeAlias

InstructionSet: TypeAlias = Literal["avx512_bf16", "avx512", "avx2", "generic"]

INSTRUCTION_SETS: Final[tuple[InstructionSet, ...]] = ("avx512_bf16", "avx512", "avx2", "generic")
"""Best first. "generic" is what every CPU of the machine's architecture can run."""

_AVX2 = ("avx2", "fma", "bmi", "bmi2")
_AVX512 = (*_AVX2, "avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl")
_FEATURES: Final[dict[InstructionSet, tuple[str, ...]]] = {
    "avx512_bf16": (*_AVX512, "avx512bf16"),
    "avx512": _AVX512,
    "avx2": _AVX2,
    "generic": (),
}


def instruction_sets_of(machine: str) -> tuple[InstructionSet, ...]:
    """Those that exist for an architecture, as `platform.machine()` names it; best first."""
    return INSTRUCTION_SETS if machine.lower() in {"x86_64", "amd64"} else ("generic",)


def instruction_sets_of_this_machine() -> tuple[InstructionSet, ...]:
    """Those that the library can be compiled for here; the CPU may run only some of them."""
    return instruction_sets_of(platform.machine())


def features(instruction_set: InstructionSet) -> tuple[str, ...]:
    """What the CPU must have, in the compilers' names; `src/probe.c` asks for the same."""
    return _FEATURES[instruction_set]


def flags(instruction_set: InstructionSet) -> tuple[str, ...]:
    """What the compiler is told; features one by one, as older compilers know no -march levels."""
    return tuple(f"-m{feature}" for feature in features(instruction_set))
