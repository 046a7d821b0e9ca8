"""Memory of the KV cache that is taken before a step writes to it."""

import gc
import weakref
from collections.abc import Callable

import numpy as np
import psutil
import pytest
import torch

from kernels.cpu.backend import CpuBackend
from kernels.cpu.kv_memory import AHEAD_BYTES, PIECE_BYTES, KvMemory
from kernels.cpu.library import CpuLibrary
from kernels.ragged_batch import Int32Array
from tests.support.arrays import run, to_arrays
from tests.support.programs import Cache, every_op, random_weights

MIB = 2**20
NUM_ARRAYS = 4
BLOCK_SIZE = 16
BLOCK_BYTES = MIB  # of all arrays
NUM_AHEAD = AHEAD_BYTES // BLOCK_BYTES


def a_memory(populate: Callable[[int, int, int], bool], num_blocks: int) -> KvMemory:
    return KvMemory(
        populate,
        num_arrays=NUM_ARRAYS,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        block_bytes=BLOCK_BYTES,
    )


def slots(*values: int) -> Int32Array:
    return np.array(values, np.int32)


class Taken:
    """Remembers which blocks it was asked for."""

    def __init__(self, num_blocks: int) -> None:
        self.blocks = np.zeros((NUM_ARRAYS, num_blocks), int)
        self.memory = a_memory(self.take, num_blocks)

    def take(self, array: int, begin: int, end: int) -> bool:
        assert (end - begin) * BLOCK_BYTES <= PIECE_BYTES * NUM_ARRAYS
        self.blocks[array, begin:end] += 1
        return True

    def take_all(self) -> None:
        while self.memory.take():
            pass


def test_so_much_is_taken_ahead_of_what_is_written_and_each_block_once() -> None:
    taken = Taken(10 * NUM_AHEAD)
    for block in (0, 5, 3, 2 * NUM_AHEAD):
        taken.memory.written(slots(3, block * BLOCK_SIZE + 7))
        taken.take_all()

    num_taken = int(taken.blocks[0].sum())
    assert 3 * NUM_AHEAD < num_taken <= 3 * NUM_AHEAD + 1 + PIECE_BYTES * NUM_ARRAYS // BLOCK_BYTES
    assert (taken.blocks[:, :num_taken] == 1).all()
    assert not taken.blocks[:, num_taken:].any()


def test_a_small_cache_is_taken_whole_and_no_more() -> None:
    taken = Taken(7)
    taken.take_all()
    taken.memory.written(slots(6 * BLOCK_SIZE))

    assert not taken.memory.take()
    assert (taken.blocks == 1).all()


def test_where_the_system_cannot_it_is_not_asked_again() -> None:
    asked: list[int] = []

    def refuse(array: int, begin: int, end: int) -> bool:
        asked.append(array)
        return False

    memory = a_memory(refuse, 1000)
    for block in (0, 500):
        assert not memory.take()
        memory.written(slots(block * BLOCK_SIZE, 0))

    assert asked == [0]


def test_memory_is_there_before_the_first_step_and_what_is_cached_stays(
    library: CpuLibrary,
) -> None:
    program = every_op()
    weights = to_arrays(random_weights(program, torch.float32))
    lazy, ready = (CpuBackend(program, weights, weights["embed"].dtype, library, 2) for _ in "ab")
    num_blocks = 64 * MIB // ready.kv_cache_bytes(1, 16)
    cache = Cache(16, num_blocks)
    lazy.allocate_kv_cache(num_blocks, 16)
    ready.allocate_kv_cache(num_blocks, 16)
    batches = [cache.batch([(1, 20), (2, 9)]), cache.batch([(1, 1), (2, 30)])]
    logits = [run(ready, batches[0])]
    before = psutil.Process().memory_info().rss
    if not ready.prepare_memory():
        pytest.skip("this system takes no memory ahead (Linux does since 5.14)")
    while ready.prepare_memory():
        pass
    grown = psutil.Process().memory_info().rss - before
    logits.append(run(ready, batches[1]))

    # Large pages that the first step wrote to were there already.
    assert 24 * MIB < grown < 80 * MIB
    for batch, ours in zip(batches, logits, strict=True):
        assert torch.equal(ours, run(lazy, batch))


def test_a_backend_that_is_dropped_gives_its_memory_back_at_once(library: CpuLibrary) -> None:
    program = every_op()
    weights = to_arrays(random_weights(program, torch.float32))
    backend = CpuBackend(program, weights, weights["embed"].dtype, library, 2)
    backend.allocate_kv_cache(100, 16)
    gone = weakref.ref(backend)
    gc.disable()
    try:
        del backend
        assert gone() is None
    finally:
        gc.enable()
