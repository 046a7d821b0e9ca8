"""A program may gather what is sampled early, but nobody sees it in the logits."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.program import GatherRows, Linear, Op, PagedAttention, Program
from kernels.reference import ReferenceBackend
from kernels.sampled_rows import gather_early
from services.worker.models.config import ModelConfig
from services.worker.models.registry import make_model
from tests.support.programs import Cache, every_op, random_weights

ARCHITECTURES = (
    "FalconForCausalLM",
    "LlamaForCausalLM",
    "MixtralForCausalLM",
    "OPTForCausalLM",
    "Qwen2ForCausalLM",
)


def tiny(architecture: str) -> Program:
    return make_model(
        ModelConfig(
            architectures=(architecture,),
            vocab_size=83,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_local_experts=3,
            num_experts_per_tok=2,
            word_embed_proj_dim=24,
            max_position_embeddings=64,
        )
    ).program


def programs() -> dict[str, Program]:
    return {"every op": every_op(), **{name: tiny(name) for name in ARCHITECTURES}}


def logits_of(program: Program) -> Tensor:
    backend = ReferenceBackend(program, random_weights(program, torch.float32))
    backend.allocate_kv_cache(4, 5)
    return backend.run(Cache(5, num_blocks=4).batch([(1, 9), (2, 4)]))


@pytest.mark.parametrize("name", programs())
@pytest.mark.parametrize(
    "sampled",
    [(), (8,), (11, 0, 0, 5), (*range(12), *range(12))],
    ids=lambda rows: f"{len(rows)} rows",
)
def test_logits_are_those_of_the_program_as_it_was(name: str, sampled: tuple[int, ...]) -> None:
    program = programs()[name]
    early = gather_early(program)
    cache = Cache(5, num_blocks=16)
    batches = [cache.batch([(1, 9), (2, 4)]), cache.batch([(1, 3), (2, 1), (3, 8)])]
    batches[1] = dataclasses.replace(batches[1], logits_index=np.array(sampled, np.int32))
    results = []
    for each in (program, early):
        backend = ReferenceBackend(each, random_weights(each, torch.float32))
        backend.allocate_kv_cache(16, 5)
        results.append([backend.run(batch) for batch in batches])

    for was, now in zip(*results, strict=True):
        assert was.shape == now.shape
        assert torch.allclose(was, now, atol=1e-5)


@pytest.mark.parametrize("name", programs())
def test_behind_the_last_attention_nothing_multiplies_all_tokens(name: str) -> None:
    program = gather_early(programs()[name])

    last = max(i for i, op in enumerate(program.ops) if isinstance(op, PagedAttention))
    multiplied = [op.input for op in program.ops[last:] if isinstance(op, Linear)]

    assert multiplied
    assert {program.buffers[name].rows for name in multiplied} == {"logits"}


def test_what_was_gathered_before_the_last_attention_is_read_as_it_is() -> None:
    program = every_op()
    ops: list[Op] = [op for op in program.ops if not isinstance(op, GatherRows)]
    ops.insert(11, GatherRows("hidden", out="last"))
    before = dataclasses.replace(program, ops=tuple(ops))
    before.validate()

    assert logits_of(gather_early(before)).equal(logits_of(before))


def test_it_stays_as_it_is_if_all_rows_are_used_after_some_were_gathered() -> None:
    program = every_op()
    number = next(i for i, op in enumerate(program.ops) if isinstance(op, GatherRows))
    ops = list(program.ops)
    ops[number - 1 : number - 1] = [GatherRows("hidden", out="last")]

    goes_on = dataclasses.replace(program, ops=tuple(ops))
    goes_on.validate()

    assert gather_early(goes_on) is goes_on


def test_it_stays_as_it_is_if_tokens_are_embedded_behind_the_last_attention() -> None:
    program = every_op()
    positions = program.ops[1]
    number = next(i for i, op in enumerate(program.ops) if isinstance(op, GatherRows))
    ops = (*program.ops[:number], positions, *program.ops[number:])

    embeds = dataclasses.replace(program, ops=ops)
    embeds.validate()

    assert gather_early(embeds) is embeds
