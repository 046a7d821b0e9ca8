"""Where to compute, in what, with how many threads."""

import os
from pathlib import Path

import pytest
import torch

from common.errors import StartupError
from services.worker import device
from services.worker.device import num_threads, pick_device, pick_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused() -> None:
    assert pick_device("auto") == pick_device("cpu") == CPU
    with pytest.raises(StartupError, match="cuda:1: this machine has 0 usable GPUs"):
        pick_device("cuda:1")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_dtype_that_is_asked_for_is_taken(dtype: device.DtypeName) -> None:
    assert pick_dtype(dtype, CPU, "bfloat16") == getattr(torch, dtype)


def test_auto_is_the_models_own_dtype_on_a_gpu() -> None:
    assert pick_dtype("auto", GPU, "float16") == torch.float16
    assert pick_dtype("auto", GPU, None) == torch.bfloat16


def test_auto_on_a_cpu_is_bfloat16_only_where_the_cpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for supported, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda s=supported: s)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert pick_dtype("auto", CPU, "bfloat16") == expected


def test_threads_are_the_cores_of_the_quota_and_many_cores_spare_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))

    (tmp_path / "cpu.max").write_text("max 100000\n")
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert num_threads(None) == 15
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert num_threads(None) == 2
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert num_threads(None) == 1
    assert num_threads(9) == 9
