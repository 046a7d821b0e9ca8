"""The machine's own limits, measured: what no engine can be faster than."""

from ctypes import c_double, c_int, c_long
from dataclasses import dataclass
from pathlib import Path

from kernels.cpu import instruction_set as isa
from kernels.cpu.library import default_cache
from kernels.cpu.library_cache import SOURCES, Target

_READ_BYTES_PER_THREAD = 128 * 2**20
_ROUNDS_PER_THREAD = 500_000
_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Machine:
    """The best of several measurements."""

    read_bytes_per_s: float
    flop_per_s: float  # of the dtype that was asked for

    def best(self, other: "Machine") -> "Machine":
        """The higher of both limits."""
        return Machine(
            max(self.read_bytes_per_s, other.read_bytes_per_s),
            max(self.flop_per_s, other.flop_per_s),
        )

    def floor_s(self, num_bytes: float, flop: float) -> float:
        """Below this no step can be: it reads its bytes and does its arithmetic."""
        return max(num_bytes / self.read_bytes_per_s, flop / self.flop_per_s)


class Gauge:
    """Measures this machine, with all threads together."""

    def __init__(
        self, instruction_set: isa.InstructionSet, num_threads: int, is_bf16: bool
    ) -> None:
        ours = (SOURCES / name for name in ("pool.c", "waiting.c", "memory.c"))
        sources = (Path(__file__).parent / "machine.c", *ours)
        flags = (*isa.flags(instruction_set), f"-I{SOURCES}")
        self._library = default_cache().open(Target(f"machine-{instruction_set}", sources, flags))
        self._library.measure_read.restype = self._library.measure_flops.restype = c_double
        self._library.measure_read.argtypes = [c_int, c_long]
        self._library.measure_flops.argtypes = [c_int, c_int, c_long]
        self._num_threads = num_threads
        self._is_bf16 = is_bf16

    def measure(self) -> Machine:
        """Takes about half a second; both limits drift on a machine that others share."""
        threads, is_bf16 = self._num_threads, self._is_bf16
        read, compute = self._library.measure_read, self._library.measure_flops
        return Machine(
            max(read(threads, threads * _READ_BYTES_PER_THREAD) for _ in range(_REPEATS)),
            max(compute(threads, is_bf16, threads * _ROUNDS_PER_THREAD) for _ in range(_REPEATS)),
        )
