"""From torch's tensors to numpy's arrays, and a CPU backend for tests that think in tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kernels.backend import Backend
from kernels.cpu.backend import CpuBackend
from kernels.host_array import BFLOAT16, HostArray
from kernels.ragged_batch import RaggedBatch


def to_array(tensor: Tensor) -> HostArray:
    """The same memory; torch cannot name numpy's bfloat16, so its bits go over as integers."""
    if tensor.dtype != torch.bfloat16:
        array: HostArray = tensor.contiguous().numpy()
        return array
    return tensor.contiguous().view(torch.int16).numpy().view(BFLOAT16)


def to_arrays(tensors: Mapping[str, Tensor]) -> dict[str, HostArray]:
    return {name: to_array(tensor) for name, tensor in tensors.items()}


def run(backend: Backend[Tensor] | CpuBackend, batch: RaggedBatch) -> Tensor:
    """The logits, which the next step leaves alone."""
    if isinstance(backend, CpuBackend):
        return torch.from_numpy(backend.run(batch).copy())
    return backend.run(batch).clone()
