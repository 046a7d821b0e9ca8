"""A program that contradicts itself is refused, and says where."""

import dataclasses
import json
from typing import Any

import pytest

from kernels.program import (
    Buffer,
    Embed,
    EmbedPositions,
    GatedActivation,
    GatherRows,
    KvShape,
    Linear,
    Logits,
    MixtureOfExperts,
    Norm,
    Op,
    PagedAttention,
    Program,
    ProgramError,
    Rope,
    RopeStoreKv,
)

HEADS, KV_HEADS, HEAD_DIM, WIDTH, INNER, VOCAB = 6, 2, 10, 44, 21, 97
BUFFERS = {
    "hidden": Buffer(WIDTH),
    "qkv": Buffer((HEADS + 2 * KV_HEADS) * HEAD_DIM),
    "attended": Buffer(HEADS * HEAD_DIM),
    "gate_up": Buffer(2 * INNER),
    "gated": Buffer(INNER),
    "last": Buffer(WIDTH, rows="logits"),
}
WEIGHTS = {
    "embed": (VOCAB, WIDTH),
    "norm": (WIDTH,),
    "qkv": (100, WIDTH),
    "o": (WIDTH, 60),
    "up": (2 * INNER, WIDTH),
    "down": (WIDTH, INNER),
}
OPS: tuple[Op, ...] = (
    Embed("embed", out="hidden"),
    Linear("hidden", out="qkv", weight="qkv"),
    RopeStoreKv("qkv", 0, HEADS, KV_HEADS, HEAD_DIM, Rope((1.0, 0.1))),
    PagedAttention("qkv", "attended", 0, HEADS, KV_HEADS, HEAD_DIM, scale=0.3),
    Linear("attended", out="hidden", weight="o", residual="hidden"),
    Linear("hidden", out="gate_up", weight="up"),
    GatedActivation("silu", "gate_up", out="gated"),
    Linear("gated", out="hidden", weight="down", residual="hidden"),
    GatherRows("hidden", out="last"),
    Norm("rms", "last", out="last", weight="norm", eps=1e-5),
    Logits("last", weight="embed"),
)
PROGRAM = Program(OPS, BUFFERS, WEIGHTS)

EXPERTS = MixtureOfExperts(
    "normed", "hidden", "router", "experts_up", "experts_down", 5, 2, "silu", residual="hidden"
)
SPARSE = Program(  # positions are added behind op 0, experts stand behind a norm of their own
    (
        OPS[0],
        EmbedPositions("positions", out="hidden", offset=2),
        *OPS[1:5],
        Norm("layer", "hidden", out="normed", weight="norm", eps=1e-5),
        EXPERTS,
        *OPS[8:],
    ),
    {name: b for name, b in BUFFERS.items() if not name.startswith("gate")}
    | {"normed": Buffer(WIDTH)},
    {
        **{name: WEIGHTS[name] for name in ("embed", "norm", "qkv", "o")},
        "positions": (33, WIDTH),
        "router": (5, WIDTH),
        "experts_up": (5, 2 * INNER, WIDTH),
        "experts_down": (5, WIDTH, INNER),
    },
)


def with_op(index: int, program: Program = PROGRAM, **changes: Any) -> Program:
    ops = list(program.ops)
    ops[index] = dataclasses.replace(ops[index], **changes)
    return dataclasses.replace(program, ops=tuple(ops))


def sparse_with(op: type[Op], **changes: Any) -> Program:
    number = next(i for i, other in enumerate(SPARSE.ops) if isinstance(other, op))
    return with_op(number, SPARSE, **changes)


def test_a_sound_program_is_accepted_and_says_what_it_needs() -> None:
    PROGRAM.validate()

    assert PROGRAM.vocab_size == VOCAB
    assert PROGRAM.kv_layers == (KvShape(KV_HEADS, HEAD_DIM),)


def test_positions_and_experts_are_accepted() -> None:
    SPARSE.validate()


def test_a_program_is_plain_data() -> None:
    fields = [dataclasses.asdict(op) for op in (*OPS, *SPARSE.ops)]

    assert json.loads(json.dumps(fields))[2]["rope"] == {"inv_freq": [1.0, 0.1], "scale": 1.0}


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        (with_op(1, input="nowhere"), "op 1 .*'nowhere', which is not a buffer"),
        (with_op(1, weight="nothing"), "op 1 .*'nothing', which is not a weight"),
        (with_op(1, weight="o"), r"op 1 .*'o' as \(100, 44\); it is \(44, 60\)"),
        (with_op(0, out="last"), "op 0 .*'last' by tokens; it is by logits"),
        (with_op(1, input="gated", weight="up"), "op 1 .*needs 'up'|before it is written"),
        (with_op(3, out="hidden"), "op 3 .*'hidden' 60 wide; it is 44"),
        (with_op(3, num_heads=4), "op 3 .*'qkv' 80 wide"),
        (with_op(3, layer=1), r"layers are \[1\]"),
        (with_op(6, input="qkv"), "op 6 .*'qkv' 42 wide; it is 100"),
        (with_op(4, residual="gated"), "op 4 .*'gated' 44 wide; it is 21"),
        (with_op(8, input="last"), "op 8 .*'last' by tokens"),
        (with_op(9, weight="up"), "op 9 .*'up' as"),
        (with_op(9, bias="o"), "op 9 .*'o' as"),
        (with_op(2, rope=Rope((1.0,) * 6)), "rope turns more than the 10 dimensions"),
        (dataclasses.replace(PROGRAM, ops=OPS[:-1]), "ends with its only Logits"),
        (dataclasses.replace(PROGRAM, ops=(*OPS, OPS[-1])), "ends with its only Logits"),
        (dataclasses.replace(PROGRAM, ops=OPS[1:]), "op 0 .*before it is written"),
        (
            dataclasses.replace(PROGRAM, weights={**WEIGHTS, "spare": (3,)}),
            "never used: spare",
        ),
    ],
)
def test_a_contradiction_is_refused(program: Program, complaint: str) -> None:
    with pytest.raises(ProgramError, match=complaint):
        program.validate()


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        (sparse_with(EmbedPositions, out="last"), "op 1 .*'last' by tokens; it is by logits"),
        (sparse_with(EmbedPositions, out="attended"), r"op 1 .*'attended' before it is written"),
        (sparse_with(EmbedPositions, weight="o"), r"op 1 .*'o' as \(44, 44\); it is \(44, 60\)"),
        (sparse_with(EmbedPositions, weight="none"), "op 1 .*'none', which is not a weight"),
        (sparse_with(EmbedPositions, offset=-1), "op 1 .*has offset -1, which is before its table"),
        (sparse_with(MixtureOfExperts, input="attended"), "op 7 .*'hidden' 60 wide; it is 44"),
        (sparse_with(MixtureOfExperts, input="last"), "op 7 .*'last' by tokens"),
        (sparse_with(MixtureOfExperts, residual="qkv"), "op 7 .*'qkv' 44 wide; it is 100"),
        (sparse_with(MixtureOfExperts, input="hidden"), "op 7 .*writes 'hidden', which it multip"),
        (sparse_with(MixtureOfExperts, top_k=6), "op 7 .*takes 6 of 5 experts"),
        (sparse_with(MixtureOfExperts, top_k=0), "op 7 .*takes 0 of 5 experts"),
        (
            sparse_with(MixtureOfExperts, num_experts=4),
            r"op 7 .*'router' as \(4, 44\); it is \(5, 44\)",
        ),
        (
            sparse_with(MixtureOfExperts, gate_up="experts_down"),
            r"op 7 .*'experts_down' as \(5, 42, 44\); it is \(5, 44, 21\)",
        ),
        (sparse_with(MixtureOfExperts, down="o"), r"op 7 .*'o' as \(5, 44, 60\)"),
        (sparse_with(MixtureOfExperts, down="none"), "op 7 .*'none', which is not a weight"),
    ],
)
def test_contradictions_of_positions_and_experts_are_refused(
    program: Program, complaint: str
) -> None:
    with pytest.raises(ProgramError, match=complaint):
        program.validate()


def test_a_matrix_is_not_multiplied_in_place() -> None:
    program = with_op(4, input="hidden", weight="square")
    weights = {**WEIGHTS, "square": (WIDTH, WIDTH)}

    with pytest.raises(ProgramError, match=r"op 4 .*writes 'hidden', which it multiplies"):
        dataclasses.replace(program, weights=weights).validate()


def test_heads_must_divide_among_kv_heads() -> None:
    ops = list(OPS)
    ops[2] = RopeStoreKv("qkv", 0, 7, 2, HEAD_DIM, rope=None)
    ops[3] = PagedAttention("qkv", "attended", 0, 7, 2, HEAD_DIM, scale=0.3)
    buffers = {**BUFFERS, "qkv": Buffer(110), "attended": Buffer(70)}
    weights = {**WEIGHTS, "qkv": (110, WIDTH), "o": (WIDTH, 70)}

    with pytest.raises(ProgramError, match="7 heads do not divide among 2"):
        Program(tuple(ops), buffers, weights).validate()
