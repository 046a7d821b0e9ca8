"""The backends that compute with torch; imported only where one of them is to serve."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from common.errors import StartupError
from kernels.backend import Backend
from kernels.host_array import BFLOAT16, HostArray
from kernels.program import Program
from kernels.reference import ReferenceBackend
from services.worker.device import CPU


def make_torch_backend(
    is_triton: bool,
    device: str,
    program: Program,
    weights: Mapping[str, HostArray],
    threads: int,
    checkpoint: Callable[[], None],
) -> Backend[Any]:
    """Make the triton backend or the reference.

    Args:
        device: "cpu" (the reference only) or "cuda:N".
        threads: that torch computes with on a CPU.

    Raises:
        StartupError: Triton is not installed, or cannot do what it was asked to.
    """
    torch.set_num_threads(1)  # loading copies: more threads would mostly wait for each other
    tensors = {name: to_tensor(weights[name], device) for name in program.weights}
    if is_triton:
        return _triton_backend(program, tensors, checkpoint)
    if device == CPU:
        torch.set_num_threads(threads)
    return ReferenceBackend(program, tensors, checkpoint)


def to_tensor(array: HostArray, device: str = CPU) -> Tensor:
    """The same values on a device; on the CPU, the same memory."""
    if array.dtype != BFLOAT16:
        return torch.from_numpy(array).to(device)
    # torch does not know numpy's bfloat16, so the bits go over as integers.
    return torch.from_numpy(array.view("int16")).view(torch.bfloat16).to(device)


def gpu_memory(device: str) -> tuple[int, int]:
    """Bytes that are free, and all, of a GPU."""
    return torch.cuda.mem_get_info(torch.device(device))


def _triton_backend(
    program: Program, weights: dict[str, Tensor], checkpoint: Callable[[], None]
) -> Backend[Any]:
    try:  # not at the top: CPU builds of torch come without triton
        from kernels.triton.backend import TritonBackend, TritonBackendError
    except ImportError as error:
        raise StartupError(f"triton backend: {error}; install splitfuse[gpu]") from None
    try:
        return TritonBackend(program, weights, checkpoint)
    except TritonBackendError as error:
        raise StartupError(f"triton backend: {error}") from None
