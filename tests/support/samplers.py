"""Every implementation of sampling, on threads of its own."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from kernels.backend import Logprobs, Sampler
from kernels.cpu.instruction_set import INSTRUCTION_SETS, InstructionSet
from kernels.cpu.library import load_library, supported_instruction_sets
from kernels.cpu.sampler import CpuSampler
from kernels.host_array import Float32Array, HostArray, Int64Array
from kernels.reference_sampler import ReferenceSampler
from kernels.sampling import Biases, Penalties, Randomness

SAMPLERS = ("reference", *INSTRUCTION_SETS)


class SamplerOfTensors:
    """Takes tensors to a sampler of arrays."""

    def __init__(self, sampler: CpuSampler) -> None:
        self._sampler = sampler

    def argmax(self, logits: Tensor) -> tuple[Int64Array, Float32Array]:
        return self._sampler.argmax(logits.numpy())

    def sample(
        self, logits: Tensor, rows: Int64Array, randomness: Randomness[HostArray]
    ) -> Int64Array:
        return self._sampler.sample(logits.numpy(), rows, randomness)

    def edit(
        self,
        logits: Tensor,
        rows: Int64Array,
        biases: Biases[HostArray] | None,
        penalties: Penalties[HostArray] | None,
    ) -> Tensor:
        return torch.from_numpy(self._sampler.edit(logits.numpy(), rows, biases, penalties))

    def logprobs(
        self, logits: Tensor, rows: Int64Array, token_ids: Int64Array, count: int
    ) -> Logprobs:
        return self._sampler.logprobs(logits.numpy(), rows, token_ids, count)


@contextmanager
def make_sampler(name: str, vocab_size: int, num_threads: int = 2) -> Iterator[Sampler[Tensor]]:
    """One of SAMPLERS, or "cpu", the best of this machine, for logits that are tensors.

    Skips what cannot run here.
    """
    if name == "reference":
        yield ReferenceSampler()
        return
    if not any(shutil.which(compiler) for compiler in ("cc", "gcc", "clang")):
        pytest.skip("no C compiler")
    supported = supported_instruction_sets()
    wanted: InstructionSet = next((i for i in INSTRUCTION_SETS if i == name), supported[0])
    if wanted not in supported:
        pytest.skip(f"this CPU has no {wanted}")
    library = load_library(wanted)
    threads = library.functions.pool_create(num_threads, 10)
    try:
        yield SamplerOfTensors(CpuSampler(library, threads, vocab_size))
    finally:
        library.functions.pool_destroy(threads)
