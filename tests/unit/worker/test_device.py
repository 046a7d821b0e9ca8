"""Where to compute, in what, with how many threads."""

import os
from pathlib import Path

import pytest
import torch

from common.errors import StartupError
from services.worker import device
from services.worker.device import CPU, num_threads, pick_device, pick_dtype

GPU = "cuda:0"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused() -> None:
    assert pick_device("auto") == pick_device("cpu") == CPU
    with pytest.raises(StartupError, match="cuda:1: this machine has 0 usable GPUs"):
        pick_device("cuda:1")


@pytest.mark.parametrize(
    ("asked", "num_gpus", "picked"),
    [("auto", 2, "cuda:0"), ("cuda", 1, "cuda:0"), ("cuda:1", 2, "cuda:1"), ("auto", 0, "cpu")],
)
def test_where_there_may_be_a_gpu_torch_is_asked(
    asked: str, num_gpus: int, picked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_GPU_DRIVERS", (tmp_path / "none", tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)

    assert pick_device(asked) == picked


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_dtype_that_is_asked_for_is_taken(dtype: device.DtypeName) -> None:
    assert pick_dtype(dtype, CPU, "bfloat16").name == dtype


def test_auto_is_the_models_own_dtype_on_a_gpu() -> None:
    assert pick_dtype("auto", GPU, "float16").name == "float16"
    assert pick_dtype("auto", GPU, None).name == "bfloat16"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2 avx512_bf16 avx512vl", "bfloat16"),
        ("fpu amx_bf16", "bfloat16"),
        ("fpu avx2 avx512f", "float32"),
    ],
)
def test_auto_on_a_cpu_is_bfloat16_only_where_the_cpu_multiplies_it(
    flags: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: avx512_bf16\n")
    monkeypatch.setattr(device, "_CPU_INFO", info)
    assert pick_dtype("auto", CPU, "bfloat16").name == expected


def test_a_system_that_does_not_say_what_its_cpu_can_do_gets_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_CPU_INFO", tmp_path / "none")
    assert pick_dtype("auto", CPU, "bfloat16").name == "float32"


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
