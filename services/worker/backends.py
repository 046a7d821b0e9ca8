"""Which implementation of the ops a worker runs on."""

from collections.abc import Callable, MutableMapping

import structlog
import torch
from torch import Tensor

from common.config import WorkerOptions
from common.errors import ConfigError, StartupError
from kernels.backend import Backend
from kernels.cpu.backend import CpuBackend, CpuBackendError
from kernels.cpu.encode import DTYPES
from kernels.cpu.errors import CpuLibraryError
from kernels.cpu.library import CpuLibrary, load_library
from kernels.cpu.library_cache import LibraryCache, default_directory
from kernels.program import Program
from kernels.reference import ReferenceBackend
from services.worker.device import num_threads

logger = structlog.get_logger(__name__)


def make_backend(
    options: WorkerOptions,
    device: torch.device,
    dtype: torch.dtype,
    program: Program,
    weights: MutableMapping[str, Tensor],
    checkpoint: Callable[[], None],
) -> Backend:
    """Make what `--backend` asks for; "auto" is the fastest that is known to be right here.

    No GPU has run the triton backend yet, so on a GPU "auto" is the reference.

    Args:
        weights: emptied.

    Raises:
        ConfigError: the backend does not compute on this device or in this dtype.
        StartupError: the backend was asked for by name and cannot be had.
    """
    if options.backend == "triton":
        return _triton_backend(device, dtype, program, weights, checkpoint)
    threads = num_threads(options.cpu_threads)
    library = _cpu_library(options, device, dtype)
    if library is None:
        torch.set_num_threads(threads)
        return ReferenceBackend(program, weights, checkpoint)
    torch.set_num_threads(1)  # the library has threads of its own
    try:
        return CpuBackend(program, weights, library, threads, checkpoint)
    except CpuBackendError as error:
        raise StartupError(f"cpu backend: {error}") from None


def _triton_backend(
    device: torch.device,
    dtype: torch.dtype,
    program: Program,
    weights: MutableMapping[str, Tensor],
    checkpoint: Callable[[], None],
) -> Backend:
    if device.type != "cuda":
        raise ConfigError(f"--backend triton computes on a GPU, not on {device}")
    try:  # not at the top: CPU builds of torch come without triton
        from kernels.triton.backend import TritonBackend, TritonBackendError
    except ImportError as error:
        raise StartupError(f"triton backend: {error}; install splitfuse[gpu]") from None
    try:
        return TritonBackend(program, weights, checkpoint)
    except TritonBackendError as error:
        raise StartupError(f"triton backend, {dtype}: {error}") from None


def _cpu_library(
    options: WorkerOptions, device: torch.device, dtype: torch.dtype
) -> CpuLibrary | None:
    """None: the reference backend it is."""
    if options.backend == "reference":
        return None
    if device.type != "cpu" or dtype not in DTYPES:
        if options.backend == "cpu":
            raise ConfigError(
                f"--backend cpu computes on a CPU in float32 or bfloat16, not on {device} in "
                f"{str(dtype).removeprefix('torch.')}"
            )
        return None
    try:
        return load_library(
            None if options.cpu_isa == "auto" else options.cpu_isa,
            LibraryCache(default_directory(), options.cpu_library_dir),
        )
    except CpuLibraryError as error:
        if options.backend == "cpu" or options.cpu_isa != "auto":
            raise StartupError(f"cpu backend: {error}") from None
        logger.warning("the reference backend serves, which is slower", reason=str(error))
        return None
