"""A model as data: a list of ops over named buffers and weights.

A model family emits a `Program`; a backend runs it over a `RaggedBatch`. Nothing in it is code, so
a backend may walk it op by op (`kernels.reference`) or hand it over whole (a C step function, a
captured graph), and every backend serves every family.

Buffers are activations `[rows, width]` in the model's dtype. `rows` is "tokens" (all tokens of the
batch) or "logits" (only those whose next token is sampled). Ops run in order; an op may write the
buffer it reads, unless it multiplies that by a matrix. Weights are named tensors of a fixed shape.
What each op computes, and how exactly, stands in the file of its name.

A buffer that no matrix multiplication and no attention reads (only norms, residual sums, position
embeddings and gathers do) may be kept in float32 by a backend: it is the residual stream, where
sums of many layers pile up. So a family writes what it multiplies to a buffer of its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Rows: TypeAlias = Literal["tokens", "logits"]
Activation: TypeAlias = Literal["relu", "silu", "gelu", "gelu_tanh"]


class ProgramError(ValueError):
    """A program contradicts itself: a fault of the family that emitted it."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """Activations `[rows, width]`."""

    width: int
    rows: Rows = "tokens"


@dataclass(frozen=True, slots=True)
class Embed:
    """`out[t] = weight[token_ids[t]]`; see `kernels.embed`."""

    weight: str
    out: str


@dataclass(frozen=True, slots=True)
class EmbedPositions:
    """`out[t] += weight[positions[t] + offset]`; see `kernels.embed_positions`."""

    weight: str
    out: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Norm:
    """Normalise each row; with `residual`, first add `input` to it. See `kernels.norm`."""

    kind: Literal["rms", "layer"]
    input: str
    out: str
    weight: str
    eps: float
    bias: str | None = None
    residual: str | None = None


@dataclass(frozen=True, slots=True)
class Linear:
    """`out = activation(input · weightᵀ + bias) + residual`; see `kernels.linear`."""

    input: str
    out: str
    weight: str
    bias: str | None = None
    activation: Activation | None = None
    residual: str | None = None


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding of the first `2 * len(inv_freq)` dimensions of a head.

    Dimension `i` turns together with dimension `i + len(inv_freq)`, by `position * inv_freq[i]`
    radians; `scale` multiplies cosine and sine.
    """

    inv_freq: tuple[float, ...]
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class RopeStoreKv:
    """Rotate q and k, write k and v to the cache of `layer`; see `kernels.rope_store_kv`."""

    qkv: str
    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope | None


@dataclass(frozen=True, slots=True)
class PagedAttention:
    """Causal attention of the q part of `qkv` over the cache; see `kernels.paged_attention`."""

    qkv: str
    out: str
    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int | None = None
    soft_cap: float | None = None


@dataclass(frozen=True, slots=True)
class GatedActivation:
    """`out = activation(input[:, :width]) * input[:, width:]`; see `kernels.gated_activation`."""

    kind: Activation
    input: str
    out: str


@dataclass(frozen=True, slots=True)
class MixtureOfExperts:
    """Each row through the gated MLPs of its `top_k` experts; see `kernels.mixture_of_experts`.

    Weights: router `[num_experts, width]`, gate_up `[num_experts, 2 * inner, width]`, down
    `[num_experts, width, inner]`.
    """

    input: str
    out: str
    router: str
    gate_up: str
    down: str
    num_experts: int
    top_k: int
    activation: Activation
    residual: str | None = None


@dataclass(frozen=True, slots=True)
class GatherRows:
    """Keep the rows whose next token is sampled; see `kernels.gather_rows`."""

    input: str
    out: str


@dataclass(frozen=True, slots=True)
class Logits:
    """The program's result, float32 `[num_logits_rows, vocab_size]`; see `kernels.logits`."""

    input: str
    weight: str
    soft_cap: float | None = None


Op: TypeAlias = (
    Embed
    | EmbedPositions
    | Norm
    | Linear
    | RopeStoreKv
    | PagedAttention
    | GatedActivation
    | MixtureOfExperts
    | GatherRows
    | Logits
)


def buffers_read(op: Op) -> tuple[str, ...]:
    """Names of the buffers that an op reads."""
    match op:
        case Embed():
            return ()
        case EmbedPositions():
            return (op.out,)
        case RopeStoreKv() | PagedAttention():
            return (op.qkv,)
        case Norm() | Linear() | MixtureOfExperts():
            return (op.input,) if op.residual is None else (op.input, op.residual)
        case GatedActivation() | GatherRows() | Logits():
            return (op.input,)


@dataclass(frozen=True, slots=True)
class KvShape:
    """One layer's K (and equally V) of one token: `[num_kv_heads, head_dim]`."""

    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Program:
    """Ops in execution order, with the tables of what they name."""

    ops: tuple[Op, ...]
    buffers: Mapping[str, Buffer]
    weights: Mapping[str, tuple[int, ...]]

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        logits = self.ops[-1]
        assert isinstance(logits, Logits), "validate() holds"
        return self.weights[logits.weight][0]

    @property
    def kv_layers(self) -> tuple[KvShape, ...]:
        """What each layer stores per token, by layer."""
        stores = sorted(
            (op for op in self.ops if isinstance(op, RopeStoreKv)), key=lambda op: op.layer
        )
        return tuple(KvShape(op.num_kv_heads, op.head_dim) for op in stores)

    def validate(self) -> None:
        """Check that every op fits its buffers and weights.

        Raises:
            ProgramError: a name is not declared, a width or shape does not match, a buffer is read
                before it is written, a matrix is multiplied in place, more experts are asked for
                than there are, an offset is negative, a weight is never used, layers are not
                0..n-1, attention differs from what its layer stores, or the only `Logits` is not
                the last op.
        """
        written: set[str] = set()
        used: set[str] = set()
        for number, op in enumerate(self.ops):
            where = f"op {number} ({type(op).__name__})"
            for name, width, rows in _reads(op, self):
                self._check_buffer(where, name, width, rows)
                if name not in written:
                    raise ProgramError(f"{where} reads {name!r} before it is written")
            for name, width, rows in _writes(op, self):
                self._check_buffer(where, name, width, rows)
                written.add(name)
            for name, shape in _weights(op, self):
                self._check_weight(where, name, shape)
                used.add(name)
            _check_op(where, op)
        if unused := sorted(set(self.weights) - used):
            raise ProgramError(f"weights never used: {', '.join(unused)}")
        self._check_layers()
        if [i for i, op in enumerate(self.ops) if isinstance(op, Logits)] != [len(self.ops) - 1]:
            raise ProgramError("a program ends with its only Logits")

    def _check_buffer(self, where: str, name: str, width: int, rows: Rows | None) -> None:
        buffer = self.buffers.get(name)
        if buffer is None:
            raise ProgramError(f"{where} names {name!r}, which is not a buffer")
        if buffer.width != width:
            raise ProgramError(f"{where} needs {name!r} {width} wide; it is {buffer.width}")
        if rows is not None and buffer.rows != rows:
            raise ProgramError(f"{where} needs {name!r} by {rows}; it is by {buffer.rows}")

    def _check_weight(self, where: str, name: str, shape: tuple[int, ...]) -> None:
        if name not in self.weights:
            raise ProgramError(f"{where} names {name!r}, which is not a weight")
        if tuple(self.weights[name]) != shape:
            raise ProgramError(f"{where} needs {name!r} as {shape}; it is {self.weights[name]}")

    def _check_layers(self) -> None:
        stores = [op for op in self.ops if isinstance(op, RopeStoreKv)]
        reads = [op for op in self.ops if isinstance(op, PagedAttention)]
        for ops in (stores, reads):
            if [op.layer for op in ops] != list(range(len(stores))):
                raise ProgramError(f"layers are {[op.layer for op in ops]}, not 0..n-1 in order")
        for store, read in zip(stores, reads, strict=True):
            heads = (store.num_heads, store.num_kv_heads, store.head_dim)
            if (read.num_heads, read.num_kv_heads, read.head_dim) != heads:
                raise ProgramError(f"attention of layer {read.layer} has other heads than its KV")
            if store.num_kv_heads < 1 or store.num_heads % store.num_kv_heads:
                raise ProgramError(
                    f"{store.num_heads} heads do not divide among {store.num_kv_heads} KV heads"
                )
            if store.rope is not None and 2 * len(store.rope.inv_freq) > store.head_dim:
                raise ProgramError(
                    f"rope turns more than the {store.head_dim} dimensions of a head"
                )


def _check_op(where: str, op: Op) -> None:
    match op:
        case EmbedPositions() if op.offset < 0:
            raise ProgramError(f"{where} has offset {op.offset}, which is before its table")
        case Linear() | MixtureOfExperts() if op.input == op.out:
            raise ProgramError(f"{where} writes {op.out!r}, which it multiplies")
        case MixtureOfExperts() if not 1 <= op.top_k <= op.num_experts:
            raise ProgramError(f"{where} takes {op.top_k} of {op.num_experts} experts")
        case _:
            return


BufferUse: TypeAlias = tuple[str, int, Rows | None]  # name, width, rows (None: any)


def _width(program: Program, name: str) -> int:
    return program.buffers[name].width if name in program.buffers else -1


def _rows(program: Program, name: str) -> Rows | None:
    return program.buffers[name].rows if name in program.buffers else None


def _qkv_width(op: RopeStoreKv | PagedAttention) -> int:
    return (op.num_heads + 2 * op.num_kv_heads) * op.head_dim


def _reads(op: Op, program: Program) -> Iterator[BufferUse]:
    match op:
        case Embed():
            return
        case EmbedPositions():
            yield op.out, _width(program, op.out), "tokens"
        case Norm() | Linear() | MixtureOfExperts():
            yield op.input, _width(program, op.input), _rows(program, op.out)
            if op.residual is not None:
                width = op.input if isinstance(op, Norm) else op.out
                yield op.residual, _width(program, width), _rows(program, op.out)
        case RopeStoreKv() | PagedAttention():
            yield op.qkv, _qkv_width(op), "tokens"
        case GatedActivation():
            yield op.input, 2 * _width(program, op.out), _rows(program, op.out)
        case GatherRows():
            yield op.input, _width(program, op.out), "tokens"
        case Logits():
            yield op.input, _width(program, op.input), "logits"


def _writes(op: Op, program: Program) -> Iterator[BufferUse]:
    match op:
        case Embed():
            yield op.out, _width(program, op.out), "tokens"
        case Norm() | MixtureOfExperts():
            yield op.out, _width(program, op.input), None
        case Linear() | GatedActivation():
            yield op.out, _width(program, op.out), None
        case PagedAttention():
            yield op.out, op.num_heads * op.head_dim, "tokens"
        case GatherRows():
            yield op.out, _width(program, op.out), "logits"
        case EmbedPositions() | RopeStoreKv() | Logits():
            return


def _weights(op: Op, program: Program) -> Iterator[tuple[str, tuple[int, ...]]]:
    match op:
        case Embed() | EmbedPositions():
            table = program.weights.get(op.weight, (0,))
            yield op.weight, (table[0], _width(program, op.out))
        case Norm():
            yield op.weight, (_width(program, op.input),)
            if op.bias is not None:
                yield op.bias, (_width(program, op.input),)
        case Linear():
            yield op.weight, (_width(program, op.out), _width(program, op.input))
            if op.bias is not None:
                yield op.bias, (_width(program, op.out),)
        case MixtureOfExperts():
            width, inner = _width(program, op.input), program.weights.get(op.down, (0,))[-1]
            yield op.router, (op.num_experts, width)
            yield op.down, (op.num_experts, width, inner)
            yield op.gate_up, (op.num_experts, 2 * inner, width)
        case Logits():
            table = program.weights.get(op.weight, (0,))
            yield op.weight, (table[0], _width(program, op.input))
        case _:
            return
