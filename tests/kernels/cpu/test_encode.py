"""What the C library is given: fused where nobody else looks, wide where sums pile up."""

import dataclasses

import torch

from kernels.cpu.encode import Dtype, Kind, encode
from kernels.host_array import BFLOAT16, FLOAT32
from kernels.program import GatedActivation, Linear, Program
from services.worker.models.config import ModelConfig
from services.worker.models.llama import llama
from tests.support.arrays import to_arrays
from tests.support.programs import every_op, random_weights

TWO_LAYERS = ModelConfig(
    architectures=("LlamaForCausalLM",),
    vocab_size=50,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
)


def kinds(program: Program) -> list[int]:
    weights = to_arrays(random_weights(program, torch.float32))
    return [op.kind for op in encode(program, weights, FLOAT32).ops]


def test_every_gate_of_a_llama_becomes_part_of_its_linear() -> None:
    program = llama(TWO_LAYERS).program

    assert Kind.GATED_ACTIVATION not in kinds(program)
    assert len(kinds(program)) == len(program.ops) - 2


def test_a_gate_stays_apart_if_its_input_is_read_again_or_was_activated() -> None:
    program = every_op()
    number, gate = next(
        (i, op) for i, op in enumerate(program.ops) if isinstance(op, GatedActivation)
    )
    again = Linear("gate_up", out="normed", weight="extra")
    read_again = dataclasses.replace(
        program,
        ops=(*program.ops[: number + 1], again, *program.ops[number + 1 :]),
        weights={**program.weights, "extra": (37, 102)},
    )

    # The second gate of `every_op` follows a linear with an activation of its own.
    assert kinds(program).count(Kind.GATED_ACTIVATION) == 1
    assert kinds(read_again).count(Kind.GATED_ACTIVATION) == 2
    assert gate.input == again.input


def test_only_what_is_multiplied_is_rounded_to_bfloat16() -> None:
    program = every_op()

    weights = to_arrays(random_weights(program, torch.bfloat16))

    encoded = encode(program, weights, BFLOAT16)

    dtypes = dict(zip(program.buffers, (b.dtype for b in encoded.buffers), strict=True))
    assert {name for name, dtype in dtypes.items() if dtype == Dtype.FLOAT32} == {
        *("hidden", "delta", "gate_up", "last"),
    }
