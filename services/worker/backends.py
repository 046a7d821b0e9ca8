"""Which implementation of the ops a worker runs on."""

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from common.config import WorkerOptions
from common.errors import ConfigError, StartupError
from kernels.backend import Backend
from kernels.cpu.backend import CpuBackend, CpuBackendError
from kernels.cpu.encode import DTYPES
from kernels.cpu.errors import CpuLibraryError
from kernels.cpu.library import CpuLibrary, load_library
from kernels.cpu.library_cache import LibraryCache, default_directory
from kernels.host_array import Dtype, HostArray
from kernels.program import Program
from services.worker.device import CPU, num_threads

logger = structlog.get_logger(__name__)


def make_backend(
    options: WorkerOptions,
    device: str,
    dtype: Dtype,
    program: Program,
    weights: Mapping[str, HostArray],
    checkpoint: Callable[[], None],
) -> Backend[Any]:
    """Make what `--backend` asks for; "auto" is the fastest that is known to be right here.

    No GPU has run the triton backend yet, so on a GPU "auto" is the reference.

    Args:
        weights: one array per entry of `program.weights`, of `dtype`.

    Raises:
        ConfigError: the backend does not compute on this device or in this dtype.
        StartupError: the backend was asked for by name and cannot be had.
    """
    if options.backend == "triton" and device == CPU:
        raise ConfigError(f"--backend triton computes on a GPU, not on {device}")
    threads = num_threads(options.cpu_threads)
    library = _cpu_library(options, device, dtype)
    if library is None:
        # Not at the top: it imports torch.
        from services.worker.torch_backends import make_torch_backend

        is_triton = options.backend == "triton"
        return make_torch_backend(is_triton, device, program, weights, threads, checkpoint)
    try:
        return CpuBackend(program, weights, dtype, library, threads, checkpoint)
    except CpuBackendError as error:
        raise StartupError(f"cpu backend: {error}") from None


def _cpu_library(options: WorkerOptions, device: str, dtype: Dtype) -> CpuLibrary | None:
    """None: it is one of torch's."""
    if options.backend in {"reference", "triton"}:
        return None
    if device != CPU or dtype not in DTYPES:
        if options.backend == "cpu":
            raise ConfigError(
                f"--backend cpu computes on a CPU in float32 or bfloat16, not on {device} in "
                f"{dtype}"
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
