"""A model whose every step is one call into C; see `src/splitfuse_cpu.h`."""

import ctypes
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from kernels.cpu.encode import DTYPES, EncodedProgram, encode
from kernels.cpu.kv_memory import KvMemory
from kernels.cpu.library import Batch, CpuLibrary
from kernels.cpu.sampler import CpuSampler
from kernels.host_array import Dtype, Float32Array, HostArray
from kernels.program import Program
from kernels.ragged_batch import RaggedBatch
from kernels.sampled_rows import gather_early

# How often a thread that waits for others looks before it sleeps: some 20 microseconds in all.
# Waking takes about as long; see `benchmarks/engine/waiting.py`.
NUM_LOOKS = 1000

# 16 blocks of 16 tokens of a KV head of 64 dimensions: 32 KiB that are read one after the other.
# Divides BLOCKS_PER_EXTENT in `src/attention.h`; see decision 33.
BLOCKS_PER_GROUP = 16


class CpuBackendError(Exception):
    """The library refused what it was given, or memory or threads are short; the text says what."""


class CpuBackend:
    """A `kernels.backend.Backend` in C, for CPUs.

    A row's result does not depend on what else is in the batch, bit for bit.
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, HostArray],
        dtype: Dtype,
        library: CpuLibrary,
        num_threads: int,
        checkpoint: Callable[[], None] = lambda: None,
        num_looks: int = NUM_LOOKS,
    ) -> None:
        """Pack the weights.

        Args:
            program: validated here.
            weights: one array per entry of `program.weights`. Each is asked for once and dropped
                before the next, so that a mapping that makes them then keeps one at a time; only
                tables that tokens are looked up in stay.
            dtype: of all weights, float32 or bfloat16.
            num_threads: that compute, the caller's included.
            checkpoint: called between weights; may raise to give up.

        Raises:
            ProgramError: the program contradicts itself.
            CpuBackendError: the dtype is another one, or memory or threads are short.
        """
        program.validate()
        if dtype not in DTYPES:
            raise CpuBackendError(f"the CPU backend computes in float32 and bfloat16, not {dtype}")
        self._library = library
        self._dtype = dtype
        self._vocab_size = program.vocab_size
        self._logits = np.empty((0, self._vocab_size), np.float32)
        self._num_kv_arrays = 2 * len(program.kv_layers)
        self._kv_memory: KvMemory | None = None
        self._encoded = encode(gather_early(program), weights, dtype)
        self._model = self._create(self._encoded, DTYPES[dtype], num_threads, num_looks)
        threads = library.functions.sf_threads(self._model)
        self._sampler = CpuSampler(library, threads, self._vocab_size)
        for name in self._encoded.matrices:
            checkpoint()
            table = self._encoded.tables.get(name)
            self._pack(name, weights[name] if table is None else table)

    def __del__(self) -> None:
        if model := getattr(self, "_model", None):
            self._library.functions.sf_destroy(model)

    @property
    def name(self) -> str:
        return "cpu"

    @property
    def sampler(self) -> CpuSampler:
        return self._sampler

    @property
    def blocks_per_group(self) -> int:
        return BLOCKS_PER_GROUP

    def kv_cache_bytes(self, num_blocks: int, block_size: int) -> int:
        num_bytes: int = self._library.functions.sf_kv_cache_bytes(
            self._model, num_blocks, block_size
        )
        return num_bytes

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        self._check(
            self._library.functions.sf_allocate_kv_cache(self._model, num_blocks, block_size)
        )
        # Not a method of this object: a cycle would keep the model's memory for the collector.
        populate = partial(self._library.functions.sf_populate_kv_cache, self._model)
        self._kv_memory = KvMemory(
            lambda array, begin, end: populate(array, begin, end) == 0,
            num_arrays=self._num_kv_arrays,
            num_blocks=num_blocks,
            block_size=block_size,
            block_bytes=self.kv_cache_bytes(1, block_size),
        )

    def prepare_memory(self) -> bool:
        return self._kv_memory is not None and self._kv_memory.take()

    def run(self, batch: RaggedBatch) -> Float32Array:
        """See `kernels.backend`; the logits are valid until the next call.

        Raises:
            CpuBackendError: an index of the batch is out of range; nothing was computed.
        """
        num_rows = len(batch.logits_index)
        if num_rows > len(self._logits):
            num_rows_kept = max(num_rows, 2 * len(self._logits))
            self._logits = np.empty((num_rows_kept, self._vocab_size), np.float32)
        described = ctypes.byref(Batch.of(batch))
        self._check(
            self._library.functions.sf_step(self._model, described, self._logits.ctypes.data)
        )
        if self._kv_memory is not None:
            self._kv_memory.written(batch.slot_mapping)
        return self._logits[:num_rows]

    def _create(
        self, encoded: EncodedProgram, dtype: int, num_threads: int, num_looks: int
    ) -> ctypes.c_void_p:
        model: ctypes.c_void_p | None = self._library.functions.sf_create(
            *(encoded.ops, len(encoded.ops), encoded.buffers, len(encoded.buffers)),
            *(dtype, self._vocab_size, num_threads, num_looks),
        )
        if not model:
            raise CpuBackendError(self._library.last_error() or "out of memory")
        return model

    def _pack(self, name: str, weight: HostArray) -> None:
        assert weight.dtype == self._dtype
        for matrix in self._encoded.matrices[name]:
            values = np.ascontiguousarray(weight if matrix.index is None else weight[matrix.index])
            self._check(
                self._library.functions.sf_set_weight(
                    self._model, matrix.op, matrix.part, values.ctypes.data
                )
            )

    def _check(self, code: int) -> None:
        if code != 0:
            raise CpuBackendError(self._library.last_error())
