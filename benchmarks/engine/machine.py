"""The machine's own limits, measured: what no engine can be faster than."""

from ctypes import c_double, c_int, c_long
from dataclasses import dataclass
from pathlib import Path

from kernels.cpu import instruction_set as isa
from kernels.cpu.library import default_cache
from kernels.cpu.library_cache import SOURCES, Target

_READ_BYTES_PER_THREAD = 256 * 2**20
_ROUNDS = 4_000_000
_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Machine:
    """The best of several measurements."""

    read_bytes_per_s: float
    flop_per_s: float  # of the dtype that was asked for

    def floor_s(self, num_bytes: float, flop: float) -> float:
        """Below this no step can be: it reads its bytes and does its arithmetic."""
        return max(num_bytes / self.read_bytes_per_s, flop / self.flop_per_s)


def measure(instruction_set: isa.InstructionSet, num_threads: int, is_bf16: bool) -> Machine:
    """Measure with all threads together."""
    sources = (Path(__file__).parent / "machine.c", SOURCES / "pool.c", SOURCES / "memory.c")
    flags = (*isa.flags(instruction_set), f"-I{SOURCES}")
    library = default_cache().open(Target(f"machine-{instruction_set}", sources, flags))
    library.measure_read.restype = library.measure_flops.restype = c_double
    library.measure_read.argtypes = [c_int, c_long]
    library.measure_flops.argtypes = [c_int, c_int, c_long]
    return Machine(
        max(library.measure_read(num_threads, _READ_BYTES_PER_THREAD) for _ in range(_REPEATS)),
        max(library.measure_flops(num_threads, is_bf16, _ROUNDS) for _ in range(_REPEATS)),
    )
