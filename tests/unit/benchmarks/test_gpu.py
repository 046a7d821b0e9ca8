"""The part of benchmarks/gpu that needs no GPU."""

import pytest
import torch

from benchmarks.gpu import CASES, SHAPES, Limits, main, step_bytes
from services.worker.models.llama import llama


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU to measure")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(SystemExit, match="torch finds none on this machine"):
        main([])


def test_a_decode_reads_the_weights_once_and_every_key() -> None:
    program, case = llama(SHAPES["llama-8b"]).program, CASES[1]

    half = step_bytes(program, case, torch.bfloat16)
    eighth = step_bytes(program, case, torch.float8_e4m3fn)

    keys = 8 * 1024 * 32 * 2 * 8 * 128  # sequences, tokens, layers, K and V, heads, dimensions
    assert half - eighth == keys
    assert 14.5e9 < half - 2 * keys < 15.5e9  # 7.5 G parameters in linears and logits


def test_a_ceiling_is_the_slower_of_memory_and_arithmetic() -> None:
    limits = Limits(copy_bytes_per_s=4e12, flop_per_s=8e14)

    assert limits.ceiling_s(4e9, 1.0) == 1e-3
    assert limits.ceiling_s(4e9, 8e14) == 1.0
