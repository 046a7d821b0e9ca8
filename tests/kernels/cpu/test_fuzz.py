"""Whatever numbers a batch holds, the library answers or refuses; it touches nothing else.

`test_sanitized.py` runs these under the address and undefined-behaviour sanitizers, too.
"""

import dataclasses
from contextlib import nullcontext, suppress

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.cpu.backend import CpuBackend, CpuBackendError
from kernels.cpu.library import CpuLibrary, load_library, supported_instruction_sets
from kernels.host_array import BFLOAT16, FLOAT32, Dtype
from kernels.ragged_batch import RaggedBatch
from tests.support.arrays import to_arrays
from tests.support.programs import VOCAB, Cache, every_op, random_weights

NUM_BLOCKS, BLOCK_SIZE = 40, 7
ARRAYS = tuple(field.name for field in dataclasses.fields(RaggedBatch))
INT32 = st.integers(-(2**31), 2**31 - 1) | st.integers(-3, 200)

works = st.lists(st.integers(1, 40), min_size=1, max_size=4)
changes = st.lists(st.tuples(st.sampled_from(ARRAYS), st.integers(0, 10**6), INT32), max_size=4)


@pytest.fixture(scope="module")
def fastest() -> CpuLibrary:
    return load_library(supported_instruction_sets()[0])


def changed(batch: RaggedBatch, edits: list[tuple[str, int, int]]) -> RaggedBatch:
    arrays = {name: getattr(batch, name).copy() for name in ARRAYS}
    for name, place, value in edits:
        arrays[name].flat[place % arrays[name].size] = value
    return RaggedBatch(**arrays)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(counts=works, edits=changes, dtype=st.sampled_from([FLOAT32, BFLOAT16]))
def test_any_batch_is_answered_or_refused(
    fastest: CpuLibrary, counts: list[int], edits: list[tuple[str, int, int]], dtype: Dtype
) -> None:
    program = every_op()
    weights = to_arrays(random_weights(program, getattr(torch, dtype.name)))
    backend = CpuBackend(program, weights, dtype, fastest, num_threads=2)
    backend.allocate_kv_cache(NUM_BLOCKS, BLOCK_SIZE)
    cache = Cache(BLOCK_SIZE, NUM_BLOCKS)
    sound = cache.batch(list(enumerate(counts)))

    with nullcontext() if not edits else suppress(CpuBackendError):
        backend.run(changed(sound, edits))
    logits = backend.run(sound)

    assert logits.shape == (len(counts), VOCAB)
    assert np.isfinite(logits).all()
