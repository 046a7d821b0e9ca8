"""bfloat16 on the CPU backend is nearer to float32 than transformers' own bfloat16 is."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from kernels.cpu.backend import CpuBackend
from kernels.cpu.library import CpuLibrary, load_library, supported_instruction_sets
from kernels.host_array import BFLOAT16
from kernels.ragged_batch import RaggedBatch
from services.worker.models.config import read_config
from services.worker.models.registry import make_model
from services.worker.weights import Weights
from tests.acceptance.make_golden import LENGTHS, NUM_NEW_TOKENS
from tests.acceptance.test_parity import CASES
from tests.support.arrays import run

BLOCK_SIZE, CHUNK = 16, 256
SPOTS = [case for case in CASES if len(case["prompt"]) in random.Random(2).sample(LENGTHS, 12)]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=supported_instruction_sets())
def library(request: pytest.FixtureRequest) -> CpuLibrary:
    return load_library(request.param)


@pytest.fixture(scope="module")
def theirs(default_model: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits of transformers in float32 and in bfloat16, for what is generated of each spot."""
    logits = []
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(default_model, dtype=dtype)
        with torch.no_grad():
            logits.append(
                [
                    model(torch.tensor([case["prompt"] + case["output"]])).logits[0].float()
                    for case in SPOTS
                ]
            )
    return [(a[-NUM_NEW_TOKENS:], b[-NUM_NEW_TOKENS:]) for a, b in zip(*logits, strict=True)]


def test_logits_are_nearer_to_float32_and_choose_the_same_tokens(
    default_model: Path, theirs: list[tuple[torch.Tensor, torch.Tensor]], library: CpuLibrary
) -> None:
    model = make_model(read_config(default_model))
    weights = Weights(default_model, model, BFLOAT16)
    backend = CpuBackend(model.program, weights, BFLOAT16, library, num_threads=2)
    backend.allocate_kv_cache(128, BLOCK_SIZE)
    ours = [logits_of(backend, case["prompt"] + case["output"]) for case in SPOTS]

    our_error = torch.cat(
        [(mine - exact).abs() for mine, (exact, _) in zip(ours, theirs, strict=True)]
    )
    their_error = torch.cat([(rounded - exact).abs() for exact, rounded in theirs])

    assert our_error.mean() < their_error.mean()
    assert our_error.max() < their_error.max()
    for mine, (exact, _) in zip(ours, theirs, strict=True):
        best = exact.topk(2).values
        is_clear = best[:, 0] - best[:, 1] > their_error.max()
        assert torch.equal(mine.argmax(-1)[is_clear], exact.argmax(-1)[is_clear])


def logits_of(backend: CpuBackend, tokens: list[int]) -> torch.Tensor:
    """Of the last tokens, the sequence computed in chunks."""
    parts = []
    for begin in range(0, len(tokens), CHUNK):
        end = min(begin + CHUNK, len(tokens))
        positions = np.arange(begin, end, dtype=np.int32)
        batch = RaggedBatch(
            token_ids=np.array(tokens[begin:end], np.int32),
            positions=positions,
            cu_seqlens_q=np.array([0, end - begin], np.int32),
            kv_lens=np.array([end], np.int32),
            block_tables=np.arange(128, dtype=np.int32)[None],
            slot_mapping=positions,
            logits_index=np.arange(end - begin, dtype=np.int32),
        )
        parts.append(run(backend, batch))
    return torch.cat(parts)[-NUM_NEW_TOKENS:]
