"""A program as the structs that the C library walks.

Two things are decided here. A buffer that a matrix or attention reads has the model's dtype, all
others are float32: sums of many layers pile up in the residual stream. And a gated activation
that alone reads the linear before it becomes part of that linear.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from kernels.cpu.library import Buffer as CBuffer
from kernels.cpu.library import Op as COp
from kernels.host_array import BFLOAT16, FLOAT32, HostArray
from kernels.host_array import Dtype as HostDtype
from kernels.program import (
    Activation,
    Embed,
    EmbedPositions,
    GatedActivation,
    GatherRows,
    Linear,
    Logits,
    MixtureOfExperts,
    Norm,
    Op,
    PagedAttention,
    Program,
    RopeStoreKv,
    buffers_read,
)


class Dtype(IntEnum):
    """`sf_dtype`."""

    FLOAT32 = 0
    BFLOAT16 = 1


class Kind(IntEnum):
    """`sf_kind`."""

    EMBED = 0
    EMBED_POSITIONS = 1
    NORM = 2
    LINEAR = 3
    ROPE_STORE_KV = 4
    PAGED_ATTENTION = 5
    GATED_ACTIVATION = 6
    GATHER_ROWS = 7
    MIXTURE_OF_EXPERTS = 8
    LOGITS = 9


DTYPES: Mapping[HostDtype, Dtype] = {FLOAT32: Dtype.FLOAT32, BFLOAT16: Dtype.BFLOAT16}
_ACTIVATIONS: Mapping[Activation | None, int] = {
    None: 0,
    "relu": 1,
    "silu": 2,
    "gelu": 3,
    "gelu_tanh": 4,
}
_NORMS = {"rms": 0, "layer": 1}


@dataclass(frozen=True, slots=True)
class Matrix:
    """Where a weight goes: `part` as `sf_set_weight` counts them, `index` into its first axis."""

    op: int
    part: int
    index: int | None = None  # of experts: which one


@dataclass(slots=True)
class EncodedProgram:
    """What `sf_create` takes, and which weights go where."""

    ops: "ctypes.Array[COp]"
    buffers: "ctypes.Array[CBuffer]"
    #: by weight: the matrices that are packed from it
    matrices: dict[str, list[Matrix]] = field(default_factory=dict)
    #: by weight: embedding tables, in the model's dtype
    tables: dict[str, HostArray] = field(default_factory=dict)
    #: other arrays that the ops point to
    kept_alive: list[object] = field(default_factory=list)


def encode(program: Program, weights: Mapping[str, HostArray], dtype: HostDtype) -> EncodedProgram:
    """Lay a program out for C.

    Args:
        program: validated.
        weights: of which only those are read that are not packed: tables, norms, biases.
        dtype: of the weights, float32 or bfloat16.
    """
    encoder = _Encoder(program, weights)
    ops = [encoder.op(op) for op in _fuse(program)]
    multiplied = _multiplied(program)
    buffers = [
        CBuffer(
            width=buffer.width,
            dtype=DTYPES[dtype] if name in multiplied else Dtype.FLOAT32,
            by_logits_rows=buffer.rows == "logits",
        )
        for name, buffer in program.buffers.items()
    ]
    return EncodedProgram(
        (COp * len(ops))(*ops),
        (CBuffer * len(buffers))(*buffers),
        encoder.matrices,
        encoder.tables,
        encoder.kept_alive,
    )


@dataclass(frozen=True, slots=True)
class _GatedLinear:
    """A linear of [gate | up], and what makes one of the two."""

    linear: Linear
    gated: GatedActivation


def _fuse(program: Program) -> list[Op | _GatedLinear]:
    fused: list[Op | _GatedLinear] = []
    for number, op in enumerate(program.ops):
        before = fused[-1] if fused else None
        if (
            isinstance(op, GatedActivation)
            and isinstance(before, Linear)
            and before.out == op.input
            and not _is_read(op.input, program.ops[number + 1 :])
            and before.activation is None
            and before.residual is None
            and before.input != op.out
        ):
            fused[-1] = _GatedLinear(before, op)
        else:
            fused.append(op)
    return fused


def _is_read(name: str, ops: Sequence[Op]) -> bool:
    """Whether the next of these ops that uses a buffer reads what is in it."""
    for op in ops:
        if name in buffers_read(op):
            return True
        if name == getattr(op, "out", None):
            return False
    return False


def _multiplied(program: Program) -> set[str]:
    """Buffers that a matrix or attention reads, and what attention writes."""
    names: set[str] = set()
    for op in program.ops:
        match op:
            case Linear() | Logits() | MixtureOfExperts():
                names.add(op.input)
            case RopeStoreKv():
                names.add(op.qkv)
            case PagedAttention():
                names |= {op.qkv, op.out}
            case _:
                pass
    return names


class _Encoder:
    def __init__(self, program: Program, weights: Mapping[str, HostArray]) -> None:
        self._program = program
        self._weights = weights
        self._numbers = {name: number for number, name in enumerate(program.buffers)}
        self._frequencies: dict[tuple[float, ...], int] = {}
        self._vectors: dict[str, HostArray] = {}
        self._num_ops = 0
        self.matrices: dict[str, list[Matrix]] = {}
        self.tables: dict[str, HostArray] = {}
        self.kept_alive: list[object] = []

    def op(self, op: Op | _GatedLinear) -> COp:
        encoded = self._encode(op)
        self._num_ops += 1
        return encoded

    def _encode(self, op: Op | _GatedLinear) -> COp:
        match op:
            case Embed():
                return self._embed(Kind.EMBED, op.weight, op.out, offset=0)
            case EmbedPositions():
                return self._embed(Kind.EMBED_POSITIONS, op.weight, op.out, op.offset)
            case Norm():
                return self._norm(op)
            case Linear():
                return self._linear(op, op.out)
            case _GatedLinear():
                gate = _ACTIVATIONS[op.gated.kind]
                return self._linear(op.linear, op.gated.out, activation=gate, is_gated=1)
            case RopeStoreKv():
                return self._rope_store_kv(op)
            case PagedAttention():
                return self._paged_attention(op)
            case GatedActivation():
                activation = _ACTIVATIONS[op.kind]
                return self._make(Kind.GATED_ACTIVATION, op.input, op.out, activation=activation)
            case GatherRows():
                return self._make(Kind.GATHER_ROWS, op.input, op.out)
            case MixtureOfExperts():
                return self._experts(op)
            case Logits():
                self._add_matrix(op.weight, 0)
                rows, width = self._program.weights[op.weight]
                return self._make(
                    Kind.LOGITS,
                    op.input,
                    in_width=width,
                    out_width=rows,
                    soft_cap=op.soft_cap or 0.0,
                )

    def _make(
        self,
        kind: Kind,
        input: str | None = None,
        out: str | None = None,
        residual: str | None = None,
        **fields: float | None,
    ) -> COp:
        def number(name: str | None) -> int:
            return -1 if name is None else self._numbers[name]

        numbers = {"input": number(input), "output": number(out), "residual": number(residual)}
        return COp(kind=kind, **numbers, **fields)

    def _embed(self, kind: Kind, weight: str, out: str, offset: int) -> COp:
        if weight not in self.tables:
            self.tables[weight] = np.ascontiguousarray(self._weights[weight])
        table = self.tables[weight]
        return self._make(
            kind, out=out, table=table.ctypes.data, num_rows=len(table), offset=offset
        )

    def _norm(self, op: Norm) -> COp:
        return self._make(
            Kind.NORM,
            op.input,
            op.out,
            op.residual,
            norm=_NORMS[op.kind],
            eps=op.eps,
            weight=self._float32(op.weight),
            bias=None if op.bias is None else self._float32(op.bias),
        )

    def _linear(self, op: Linear, out: str, activation: int = 0, is_gated: int = 0) -> COp:
        self._add_matrix(op.weight, 0)
        rows, width = self._program.weights[op.weight]
        return self._make(
            Kind.LINEAR,
            op.input,
            out,
            op.residual,
            in_width=width,
            out_width=rows,
            is_gated=is_gated,
            activation=activation or _ACTIVATIONS[op.activation],
            bias=None if op.bias is None else self._float32(op.bias),
        )

    def _rope_store_kv(self, op: RopeStoreKv) -> COp:
        rope = op.rope
        return self._make(
            Kind.ROPE_STORE_KV,
            op.qkv,
            layer=op.layer,
            num_heads=op.num_heads,
            num_kv_heads=op.num_kv_heads,
            head_dim=op.head_dim,
            num_frequencies=0 if rope is None else len(rope.inv_freq),
            rope_scale=1.0 if rope is None else rope.scale,
            frequencies=None if rope is None else self._frequency_table(rope.inv_freq),
        )

    def _paged_attention(self, op: PagedAttention) -> COp:
        return self._make(
            Kind.PAGED_ATTENTION,
            op.qkv,
            op.out,
            layer=op.layer,
            num_heads=op.num_heads,
            num_kv_heads=op.num_kv_heads,
            head_dim=op.head_dim,
            scale=op.scale,
            sliding_window=op.sliding_window or 0,
            soft_cap=op.soft_cap or 0.0,
        )

    def _experts(self, op: MixtureOfExperts) -> COp:
        self._add_matrix(op.router, 0)
        for expert in range(op.num_experts):
            self._add_matrix(op.gate_up, 1 + 2 * expert, expert)
            self._add_matrix(op.down, 2 + 2 * expert, expert)
        return self._make(
            Kind.MIXTURE_OF_EXPERTS,
            op.input,
            op.out,
            op.residual,
            num_experts=op.num_experts,
            top_k=op.top_k,
            inner_width=self._program.weights[op.down][2],
            activation=_ACTIVATIONS[op.activation],
        )

    def _add_matrix(self, weight: str, part: int, index: int | None = None) -> None:
        self.matrices.setdefault(weight, []).append(Matrix(self._num_ops, part, index))

    def _float32(self, weight: str) -> int:
        if weight not in self._vectors:
            self._vectors[weight] = np.ascontiguousarray(self._weights[weight], np.float32)
            self.kept_alive.append(self._vectors[weight])
        return self._vectors[weight].ctypes.data

    def _frequency_table(self, inv_freq: tuple[float, ...]) -> int:
        """One address per table: layers that share it share their angles."""
        if inv_freq not in self._frequencies:
            array = np.array(inv_freq, np.float32)
            self.kept_alive.append(array)
            self._frequencies[inv_freq] = array.ctypes.data
        return self._frequencies[inv_freq]
