"""How threads should wait for each other on cores that are not theirs alone.

    python -m benchmarks.engine.waiting [--looks 0 100 1000 10000]

Times decode steps with the cores free, and with another process that computes now and then, or all
the time. `looks` is how often a thread that waits looks for the others before it sleeps: 0 sleeps
at once, many is spinning.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.engine.cases import BLOCK_SIZE, CASES, make_batch
from benchmarks.engine.shapes import SHAPES, random_weights
from kernels.cpu.backend import BLOCKS_PER_GROUP, CpuBackend
from kernels.cpu.library import load_library
from kernels.host_array import BFLOAT16
from services.worker.device import num_threads
from services.worker.models.llama import llama

SECONDS_EACH = 2.0
NEIGHBOURS = {"nobody": None, "40 % of a core": (0.004, 0.006), "a whole core": (1.0, 0.0)}
NEIGHBOUR = """
import time
while True:
    begin = time.monotonic()
    while time.monotonic() - begin < {busy}: pass
    time.sleep({idle})
"""


@contextmanager
def neighbour(times: tuple[float, float] | None) -> Iterator[None]:
    if times is None:
        yield
        return
    code = NEIGHBOUR.format(busy=times[0], idle=times[1])
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--looks", type=int, nargs="+", default=[0, 100, 1000, 10_000])
    options = parser.parse_args(argv)
    program, library = llama(SHAPES["smollm2-135m"]).program, load_library()
    backends = {}
    for count in options.looks:
        weights = random_weights(program, BFLOAT16)
        backends[count] = CpuBackend(
            program, weights, BFLOAT16, library, num_threads(None), num_looks=count
        )
    case = CASES[0]
    batch = make_batch(case, program.vocab_size, BLOCKS_PER_GROUP)
    for name, times in NEIGHBOURS.items():
        with neighbour(times):
            for count, backend in backends.items():
                backend.allocate_kv_cache(case.num_blocks, BLOCK_SIZE)
                steps: list[float] = []
                while sum(steps) < SECONDS_EACH:
                    began = time.perf_counter()
                    backend.run(batch)
                    steps.append(time.perf_counter() - began)
                steps.sort()
                print(
                    f"{case.name}, beside {name:14}: {count:6} looks: "
                    f"mean {1e3 * statistics.mean(steps):6.2f} ms, "
                    f"P50 {1e3 * statistics.median(steps):6.2f}, "
                    f"P99 {1e3 * steps[int(0.99 * (len(steps) - 1))]:6.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
