"""Blocks from bytes, and refusals that name the numbers."""

from pathlib import Path

import pytest

from common.errors import StartupError
from services.worker import kv_cache
from services.worker.kv_cache import (
    CPU_MEMORY_CAP_BYTES,
    GIB,
    available_on_cpu,
    available_on_gpu,
    plan_kv_cache,
)


def plan(
    available: int, max_model_len: int | None = None, model_len: int = 1000, seqs: int = 64
) -> int:
    return plan_kv_cache(
        available, 2048, 16, max_num_seqs=seqs, model_len=model_len, max_model_len=max_model_len
    )


def test_all_memory_becomes_blocks() -> None:
    assert plan(100 * 2048 + 2047) == 100


def test_no_more_blocks_than_all_sequences_could_fill() -> None:
    assert plan(GIB, seqs=3, max_model_len=33) == 9  # 3 sequences of 3 blocks


def test_the_whole_length_must_fit_only_if_it_was_asked_for() -> None:
    assert plan(10 * 2048) == 10

    with pytest.raises(StartupError, match=r"of 161 tokens needs .* fits is 160: lower --max-mod"):
        plan(10 * 2048, max_model_len=161)


def test_memory_for_not_even_one_block_is_refused() -> None:
    with pytest.raises(StartupError, match=r"fits is 0"):
        plan(2047)


def test_a_gpu_gives_its_share_less_what_is_used() -> None:
    assert available_on_gpu(100 * GIB, 30 * GIB, 0.9) == 60 * GIB
    assert available_on_gpu(100 * GIB, 95 * GIB, 0.9) == 0


def test_a_cpu_gives_half_of_what_is_free_up_to_the_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < available_on_cpu() <= CPU_MEMORY_CAP_BYTES
    monkeypatch.setattr(kv_cache, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")

    assert available_on_cpu() == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_on_cpu() > 1_000_000
