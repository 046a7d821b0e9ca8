"""Threads that lose their core in mid-item change nothing: see `src/items.h`."""

import numpy as np
import pytest
import torch

from kernels.cpu.backend import CpuBackend
from kernels.cpu.library import CpuLibrary
from kernels.host_array import Float32Array
from tests.support.arrays import to_arrays
from tests.support.programs import Cache, every_op, random_weights

# Prompts whole and in chunks, and decodes.
STEPS = (
    [(1, 7), (2, 1), (3, 70), (4, 150)],
    [(1, 1), (2, 40), (3, 1), (4, 120)],
    [(4, 1), (3, 1), (2, 1), (1, 1), (5, 3)],
    [(4, 1)],
    [(5, 130), (1, 1)],
)
ROUNDS = 12


@pytest.mark.parametrize("num_threads", [2, 7])  # 7: the system has to take turns
def test_items_that_are_begun_twice_are_stored_once(library: CpuLibrary, num_threads: int) -> None:
    """Without a look, whoever finds an item begun by another begins it again at once, or sleeps.

    So nearly every phase has items that two threads compute, of which the slower computes on
    whatever later phases have left in the buffers.
    """
    alone = logits_of_steps(library, num_threads=1, num_looks=1000)
    crowded = logits_of_steps(library, num_threads=num_threads, num_looks=0)

    assert all(np.isfinite(each).all() for each in crowded)
    assert all(np.array_equal(a, b) for a, b in zip(alone, crowded, strict=True))


def logits_of_steps(library: CpuLibrary, *, num_threads: int, num_looks: int) -> list[Float32Array]:
    """Of the same steps on fresh caches, again and again with one backend."""
    program = every_op()
    weights = to_arrays(random_weights(program, torch.float32))
    dtype = weights["embed"].dtype
    backend = CpuBackend(program, weights, dtype, library, num_threads, num_looks=num_looks)
    logits = []
    for seed in range(ROUNDS):
        backend.allocate_kv_cache(64, 16)
        cache = Cache(16, num_blocks=64, seed=seed)
        logits += [backend.run(cache.batch(step)).copy() for step in STEPS]
    return logits
