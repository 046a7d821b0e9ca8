"""Next tokens in C (see `src/sampling.h`), and in numpy what few requests ask for."""

import ctypes

import numpy as np

from kernels.backend import Logprobs
from kernels.cpu import library
from kernels.cpu.library import CpuLibrary
from kernels.host_array import Float32Array, HostArray, Int64Array
from kernels.sampling import Biases, Penalties, Randomness


class CpuSampler:
    """A `kernels.backend.Sampler` of logits in numpy.

    It draws what `kernels.sampling` draws, but where two ids, or an id and a threshold, are nearer
    to each other than float32 tells apart.
    """

    def __init__(self, loaded: CpuLibrary, threads: int, vocab_size: int) -> None:
        """Borrow threads, whose owner must live longer.

        Args:
            threads: the address of a pool: of `sf_threads` or `pool_create`.
            vocab_size: of all logits to come.

        Raises:
            MemoryError: there is too little.
        """
        self._functions = loaded.functions
        self._last_error = loaded.last_error
        self._vocab_size = vocab_size
        self._sampler: int | None = self._functions.sf_create_sampler(threads, vocab_size)
        if self._sampler is None:
            raise MemoryError(self._last_error())

    def __del__(self) -> None:
        if sampler := getattr(self, "_sampler", None):
            self._functions.sf_destroy_sampler(sampler)

    def argmax(self, logits: Float32Array) -> tuple[Int64Array, Float32Array]:
        logits = self._checked(logits)
        token_ids = np.empty(len(logits), np.int64)
        largest = np.empty(len(logits), np.float32)
        self._functions.sf_argmax(
            *(self._sampler, logits.ctypes.data, len(logits)),
            *(token_ids.ctypes.data, largest.ctypes.data),
        )
        return token_ids, largest

    def sample(
        self, logits: Float32Array, rows: Int64Array, randomness: Randomness[HostArray]
    ) -> Int64Array:
        """See `kernels.backend`.

        Raises:
            ValueError: a row or a parameter is out of range; nothing was drawn.
        """
        logits, rows = self._checked(logits), np.ascontiguousarray(rows, np.int64)
        columns: dict[str, HostArray] = {
            "temperature": np.ascontiguousarray(randomness.temperature, np.float32),
            "top_k": np.ascontiguousarray(randomness.top_k, np.int64),
            "top_p": np.ascontiguousarray(randomness.top_p, np.float64),
            "min_p": np.ascontiguousarray(randomness.min_p, np.float32),
            "seeds": np.ascontiguousarray(randomness.seeds, np.int64),
            "positions": np.ascontiguousarray(randomness.positions, np.int64),
        }
        assert all(len(column) == len(rows) for column in columns.values())
        pointers = library.Randomness(**{name: c.ctypes.data for name, c in columns.items()})
        token_ids = np.empty(len(rows), np.int64)
        code = self._functions.sf_sample(
            *(self._sampler, logits.ctypes.data, len(logits), rows.ctypes.data, len(rows)),
            *(ctypes.byref(pointers), token_ids.ctypes.data),
        )
        if code != 0:
            raise ValueError(self._last_error())
        return token_ids

    def edit(
        self,
        logits: Float32Array,
        rows: Int64Array,
        biases: Biases[HostArray] | None,
        penalties: Penalties[HostArray] | None,
    ) -> Float32Array:
        edited = logits[rows]
        if biases is not None:
            np.add.at(edited, (biases.rows, biases.token_ids), biases.values)
        if penalties is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # `argmax` finds what is not finite
                _penalise(edited, penalties)
        return edited

    def logprobs(
        self, logits: Float32Array, rows: Int64Array, token_ids: Int64Array, count: int
    ) -> Logprobs:
        shifted = logits[rows]
        shifted -= shifted.max(axis=1, keepdims=True)
        shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        own = np.take_along_axis(shifted, token_ids[:, None], axis=1)[:, 0]
        top_ids = _likeliest(shifted, count)
        return Logprobs(own, top_ids, np.take_along_axis(shifted, top_ids, axis=1))

    def _checked(self, logits: Float32Array) -> Float32Array:
        assert logits.dtype == np.float32
        assert logits.shape[1] == self._vocab_size
        return np.ascontiguousarray(logits)


def _penalise(logits: Float32Array, penalties: Penalties[HostArray]) -> None:
    where = (penalties.rows, penalties.token_ids)
    old, repetition = logits[where], penalties.repetition
    logits[where] = np.where(old > 0, old / repetition, old * repetition) - penalties.subtract


def _likeliest(logprobs: Float32Array, count: int) -> Int64Array:
    """Ids `[num_rows, count]` of the largest, largest first, of equals the lowest id first.

    Only the largest are sorted: of a whole vocabulary that would take milliseconds per row.
    """
    size = logprobs.shape[1]
    first = size - count
    found = np.argpartition(logprobs, min(first, size - 1), axis=1)[:, first:]
    found.sort(axis=1)
    order = np.argsort(-np.take_along_axis(logprobs, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)
