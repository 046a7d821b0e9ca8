"""How far a step is from the machine's floor, for shapes of models and of batches.

    python -m benchmarks.engine [--shapes smollm2-135m llama-1b] [--backend cpu reference]
                                [--dtype auto] [--cpu-isa auto] [--threads N] [--json FILE]

Weights are random. The floor is the larger of the bytes a step must read (12 bits per weight where
they lie so) over the measured bandwidth, and its arithmetic over the measured rate; both are
measured before and after each case, and the better counts. Prints the median of all repeats over
the floor, with least and most, and in brackets over that of reading whole weights.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine.cases import BLOCK_SIZE, CASES, Case, flop, make_batch, num_bytes
from benchmarks.engine.machine import Gauge, Machine
from benchmarks.engine.shapes import SHAPES, random_weights
from kernels.backend import Backend
from kernels.cpu.backend import CpuBackend
from kernels.cpu.library import CpuLibrary, load_library
from kernels.host_array import BFLOAT16, Dtype
from kernels.program import Program
from kernels.ragged_batch import RaggedBatch
from kernels.sampled_rows import gather_early
from services.worker.device import CPU, num_threads, pick_dtype
from services.worker.models.llama import llama
from services.worker.torch_backends import make_torch_backend

MIN_SECONDS, MIN_REPEATS = 1.5, 5
CODED_BYTES = 1.5  # of a bfloat16 weight, see decision 31


def make_backend(
    name: str, program: Program, dtype: Dtype, library: CpuLibrary, threads: int
) -> Backend[Any]:
    weights = random_weights(program, dtype)
    if name == "cpu":
        return CpuBackend(program, weights, dtype, library, threads)
    return make_torch_backend(False, CPU, program, weights, threads, lambda: None)


def time_steps(backend: Backend[Any], batch: RaggedBatch) -> list[float]:
    """Seconds of each step, after one that is not counted.

    All of the cache has memory then: what was never written is one page of zeros, which a core
    keeps and would read faster than it can.
    """
    backend.run(batch)
    while backend.prepare_memory():
        pass
    times: list[float] = []
    while len(times) < MIN_REPEATS or sum(times) < MIN_SECONDS:
        began = time.perf_counter()
        backend.run(batch)
        times.append(time.perf_counter() - began)
    return times


def bytes_of_weight(backend: str, dtype: Dtype, library: CpuLibrary) -> float:
    is_coded = backend == "cpu" and library.instruction_set.startswith("avx512")
    return CODED_BYTES if is_coded and dtype == BFLOAT16 else dtype.itemsize


def report(
    program: Program,
    case: Case,
    times: list[float],
    machine: Machine,
    dtype: Dtype,
    weight_bytes: float,
) -> dict[str, Any]:
    computed, element_bytes = flop(program, case), dtype.itemsize
    floor = machine.floor_s(num_bytes(program, case, element_bytes, weight_bytes), computed)
    whole_floor = machine.floor_s(num_bytes(program, case, element_bytes), computed)
    median = statistics.median(times)
    return {
        "case": case.name,
        "ms": round(1e3 * median, 2),
        "floor_ms": round(1e3 * floor, 2),
        "ratio": round(median / floor, 2),
        "ratio_of_whole_weights": round(median / whole_floor, 2),
        "spread": [round(min(times) / floor, 2), round(max(times) / floor, 2)],
        "bar": case.bar,
        "repeats": len(times),
        "read_gb_per_s": round(machine.read_bytes_per_s / 1e9, 1),
        "gflop_per_s": round(machine.flop_per_s / 1e9),
    }


def run(shape: str, options: argparse.Namespace, library: CpuLibrary) -> dict[str, Any]:
    """All cases of a shape; the machine is measured before and after each."""
    dtype = pick_dtype(options.dtype, CPU, None)
    program = gather_early(llama(SHAPES[shape]).program)
    gauge = Gauge(library.instruction_set, options.threads, dtype == BFLOAT16)
    print(f"\n{shape}, {dtype}, {library.instruction_set}, {options.threads} threads")
    lines = []
    for name in options.backend:
        backend = make_backend(name, program, dtype, library, options.threads)
        weight_bytes = bytes_of_weight(name, dtype, library)
        for case in CASES:
            backend.allocate_kv_cache(case.num_blocks, BLOCK_SIZE)
            before = gauge.measure()
            batch = make_batch(case, program.vocab_size, backend.blocks_per_group)
            times = time_steps(backend, batch)
            machine = before.best(gauge.measure())
            measured = report(program, case, times, machine, dtype, weight_bytes)
            line = {"backend": name, **measured}
            lines.append(line)
            print(
                f"  {name:9} {case.name:28} {line['ms']:8.2f} ms, floor {line['floor_ms']:8.2f}: "
                f"{line['ratio']:5.2f}x ({line['spread'][0]:.2f}-{line['spread'][1]:.2f}) "
                f"[{line['ratio_of_whole_weights']:.2f}x], "
                f"bar {case.bar}x; reads {line['read_gb_per_s']:.1f} GB/s, "
                f"computes {line['gflop_per_s']} GFLOP/s",
                flush=True,
            )
        del backend
    return {"shape": shape, "dtype": str(dtype), "lines": lines}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--backend", nargs="+", choices=("cpu", "reference"), default=["cpu"])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--cpu-isa", default="auto")
    parser.add_argument("--threads", type=int, default=num_threads(None))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    library = load_library(None if options.cpu_isa == "auto" else options.cpu_isa)
    reports = [run(shape, options, library) for shape in options.shapes]
    if options.json:
        options.json.write_text(json.dumps(reports, indent=2, default=repr) + "\n")


if __name__ == "__main__":
    main()
