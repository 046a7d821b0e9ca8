"""Where a model computes, in which dtype, and with how many threads.

torch is imported only where there may be a GPU: it takes a second and 170 MB of memory, which a
worker on a CPU has no use for.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from common.errors import StartupError
from kernels.host_array import BFLOAT16, FLOAT16, FLOAT32, Dtype

DtypeName: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]

CPU = "cpu"

_DTYPES: Mapping[str, Dtype] = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}
# What the drivers of GPUs that torch knows put in place: NVIDIA's, also on its small boards and
# under Windows, and AMD's.
_GPU_DRIVERS = (
    Path("/proc/driver/nvidia/version"),
    Path("/dev/nvidiactl"),
    Path("/dev/nvhost-gpu"),
    Path("/dev/dxg"),
    Path("/dev/kfd"),
)
_CPU_INFO = Path("/proc/cpuinfo")
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
# From so many cores on, one is left to the services beside the worker.
_SPARE_A_CORE_FROM = 4


def pick_device(asked: str) -> str:
    """The device for `--device`: "auto", "cpu", "cuda" or "cuda:N"; "cpu" or "cuda:N".

    Raises:
        StartupError: the GPU that was asked for is not there.
    """
    if asked == CPU or (asked == "auto" and not _may_have_gpu()):
        return CPU
    num_gpus = _num_gpus()
    if asked == "auto" and num_gpus == 0:
        return CPU
    index = int(asked.removeprefix("cuda:")) if ":" in asked else 0
    if index >= num_gpus:
        raise StartupError(f"--device {asked}: this machine has {num_gpus} usable GPUs")
    return f"cuda:{index}"


def pick_dtype(asked: DtypeName, device: str, model_dtype: str | None) -> Dtype:
    """The dtype of weights, activations and KV.

    "auto" is the model's own on a GPU; on a CPU it is bfloat16 if the CPU multiplies that in
    hardware, else float32 (which is then both faster and more exact).
    """
    if asked != "auto":
        return _DTYPES[asked]
    if device == CPU:
        return BFLOAT16 if _multiplies_bfloat16() else FLOAT32
    return _DTYPES.get(model_dtype or "", BFLOAT16)


def num_threads(asked: int | None) -> int:
    """Threads that compute on a CPU: all cores this process may use, but one if there are many."""
    if asked is not None:
        return asked
    cores = min(_cores_in_affinity(), _cores_in_quota())
    return max(cores - 1 if cores >= _SPARE_A_CORE_FROM else cores, 1)


def _may_have_gpu() -> bool:
    return any(path.exists() for path in _GPU_DRIVERS)


def _num_gpus() -> int:
    from torch import cuda

    return cuda.device_count() if cuda.is_available() else 0


def _multiplies_bfloat16() -> bool:
    """Only x86 says it there; on others the CPU backend has no instructions for it anyway."""
    try:
        flags = _CPU_INFO.read_text().partition("flags")[2].partition("\n")[0].split()
    except OSError:  # not on macOS
        return False
    return not _BFLOAT16_FLAGS.isdisjoint(flags)


def _cores_in_affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cores_in_quota() -> int:
    """Whole cores of a container's CPU quota; the machine's without one."""
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return max(int(quota) // int(period), 1)
    except (OSError, ValueError):  # no cgroup v2 here, or its quota is "max"
        return os.cpu_count() or 1
