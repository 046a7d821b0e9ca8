"""Where a model computes, in which dtype, and with how many threads."""

import os
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from common.errors import StartupError

DtypeName: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
# From so many cores on, one is left to the services beside the worker.
_SPARE_A_CORE_FROM = 4


def pick_device(asked: str) -> torch.device:
    """The device for `--device`: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        StartupError: the GPU that was asked for is not there.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "cpu" or (asked == "auto" and num_gpus == 0):
        return torch.device("cpu")
    device = torch.device("cuda:0" if asked in {"auto", "cuda"} else asked)
    if (device.index or 0) >= num_gpus:
        raise StartupError(f"--device {asked}: this machine has {num_gpus} usable GPUs")
    return device


def pick_dtype(asked: DtypeName, device: torch.device, model_dtype: str | None) -> torch.dtype:
    """The dtype of weights, activations and KV.

    "auto" is the model's own on a GPU; on a CPU it is bfloat16 if the CPU multiplies that in
    hardware, else float32 (which is then both faster and more exact).
    """
    if asked != "auto":
        return _DTYPES[asked]
    if device.type == "cpu":
        return torch.bfloat16 if _multiplies_bfloat16() else torch.float32
    return _DTYPES.get(model_dtype or "", torch.bfloat16)


def num_threads(asked: int | None) -> int:
    """Threads that compute on a CPU: all cores this process may use, but one if there are many."""
    if asked is not None:
        return asked
    cores = min(_cores_in_affinity(), _cores_in_quota())
    return max(cores - 1 if cores >= _SPARE_A_CORE_FROM else cores, 1)


def _multiplies_bfloat16() -> bool:
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


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
