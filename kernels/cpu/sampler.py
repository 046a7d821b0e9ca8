"""Next tokens in C; see `src/sampling.h`."""

import ctypes

import torch
from torch import Tensor

from kernels.cpu import library
from kernels.cpu.library import CpuLibrary
from kernels.sampling import Randomness


class CpuSampler:
    """A `kernels.backend.Sampler` in C.

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

    def argmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._checked(logits)
        token_ids = torch.empty(len(logits), dtype=torch.int64)
        largest = torch.empty(len(logits))
        self._functions.sf_argmax(
            *(self._sampler, logits.data_ptr(), len(logits)),
            *(token_ids.data_ptr(), largest.data_ptr()),
        )
        return token_ids, largest

    def sample(self, logits: Tensor, rows: Tensor, randomness: Randomness) -> Tensor:
        """See `kernels.backend`.

        Raises:
            ValueError: a row or a parameter is out of range; nothing was drawn.
        """
        logits, rows = self._checked(logits), rows.contiguous()
        columns = {
            "temperature": randomness.temperature.contiguous(),
            "top_k": randomness.top_k.contiguous(),
            "top_p": randomness.top_p.contiguous(),
            "min_p": randomness.min_p.contiguous(),
            "seeds": randomness.seeds.contiguous(),
            "positions": randomness.positions.contiguous(),
        }
        assert all(len(column) == len(rows) for column in columns.values())
        pointers = library.Randomness(**{name: c.data_ptr() for name, c in columns.items()})
        token_ids = torch.empty(len(rows), dtype=torch.int64)
        code = self._functions.sf_sample(
            *(self._sampler, logits.data_ptr(), len(logits), rows.data_ptr(), len(rows)),
            *(ctypes.byref(pointers), token_ids.data_ptr()),
        )
        if code != 0:
            raise ValueError(self._last_error())
        return token_ids

    def _checked(self, logits: Tensor) -> Tensor:
        assert logits.device.type == "cpu"
        assert logits.dtype == torch.float32
        assert logits.shape[1] == self._vocab_size
        return logits.contiguous()
