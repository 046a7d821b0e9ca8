"""Small programs of odd sizes that between them use every op, and batches to run them on."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from kernels.program import (
    Buffer,
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
    Rope,
    RopeStoreKv,
)
from kernels.ragged_batch import RaggedBatch

VOCAB, MAX_POSITIONS = 83, 300
WIDTH, INNER, EXPERTS = 37, 51, 5


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention of one layer."""

    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 10
    sliding_window: int | None = None
    soft_cap: float | None = None
    rotary_dim: int = 10

    @property
    def qkv_width(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


def every_op(heads: Heads = Heads()) -> Program:
    """Two layers: one like Llama's, one with layer norms, biases, experts and parts unfused."""
    h = heads
    rope = Rope(tuple(10_000.0 ** (-2 * i / h.rotary_dim) for i in range(h.rotary_dim // 2)), 1.1)
    scale = h.head_dim**-0.5
    shape = (h.num_heads, h.num_kv_heads, h.head_dim)
    attention = {
        "scale": scale,
        "sliding_window": h.sliding_window,
        "soft_cap": h.soft_cap,
    }
    ops: tuple[Op, ...] = (
        Embed("embed", out="hidden"),
        EmbedPositions("positions", out="hidden", offset=2),
        Norm("rms", "hidden", out="normed", weight="norm0", eps=1e-5),
        Linear("normed", out="qkv", weight="qkv0"),
        RopeStoreKv("qkv", 0, *shape, rope if h.rotary_dim else None),
        PagedAttention("qkv", "attended", 0, *shape, **attention),
        Linear("attended", out="hidden", weight="o0", residual="hidden"),
        Norm("rms", "hidden", out="normed", weight="norm1", eps=1e-5),
        Linear("normed", out="gate_up", weight="gate_up0", bias="gate_up_bias"),
        GatedActivation("silu", "gate_up", out="gated"),
        Linear("gated", out="hidden", weight="down0", residual="hidden"),
        Norm("layer", "hidden", out="normed", weight="norm2", eps=1e-5, bias="norm2_bias"),
        Linear("normed", out="qkv", weight="qkv1", bias="qkv_bias"),
        RopeStoreKv("qkv", 1, *shape, None),
        PagedAttention("qkv", "attended", 1, *shape, **attention),
        Linear("attended", out="delta", weight="o1", activation="gelu"),
        Norm("layer", "delta", out="normed", weight="norm3", eps=1e-5, residual="hidden"),
        MixtureOfExperts(
            "normed",
            out="hidden",
            router="router",
            gate_up="experts_up",
            down="experts_down",
            num_experts=EXPERTS,
            top_k=2,
            activation="gelu_tanh",
            residual="hidden",
        ),
        Norm("rms", "hidden", out="normed", weight="norm1", eps=1e-5, bias="norm2_bias"),
        Linear("normed", out="gate_up", weight="gate_up0", activation="relu"),
        GatedActivation("gelu", "gate_up", out="gated"),
        Linear("gated", out="hidden", weight="down0", residual="hidden"),
        GatherRows("hidden", out="last"),
        Norm("rms", "last", out="scored", weight="norm1", eps=1e-5),
        Logits("scored", weight="embed", soft_cap=30.0),
    )
    buffers = {
        "hidden": Buffer(WIDTH),
        "normed": Buffer(WIDTH),
        "delta": Buffer(WIDTH),
        "qkv": Buffer(h.qkv_width),
        "attended": Buffer(h.num_heads * h.head_dim),
        "gate_up": Buffer(2 * INNER),
        "gated": Buffer(INNER),
        "last": Buffer(WIDTH, rows="logits"),
        "scored": Buffer(WIDTH, rows="logits"),
    }
    weights: dict[str, tuple[int, ...]] = {
        "embed": (VOCAB, WIDTH),
        "positions": (MAX_POSITIONS + 2, WIDTH),
        **{f"norm{i}": (WIDTH,) for i in range(4)},
        "norm2_bias": (WIDTH,),
        "qkv0": (h.qkv_width, WIDTH),
        "qkv1": (h.qkv_width, WIDTH),
        "qkv_bias": (h.qkv_width,),
        "o0": (WIDTH, h.num_heads * h.head_dim),
        "o1": (WIDTH, h.num_heads * h.head_dim),
        "gate_up0": (2 * INNER, WIDTH),
        "gate_up_bias": (2 * INNER,),
        "down0": (WIDTH, INNER),
        "router": (EXPERTS, WIDTH),
        "experts_up": (EXPERTS, 2 * INNER, WIDTH),
        "experts_down": (EXPERTS, WIDTH, INNER),
    }
    program = Program(ops, buffers, weights)
    program.validate()
    return program


def random_weights(program: Program, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Of a size that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 1)
        ).to(dtype)
        for name, shape in program.weights.items()
    }


@dataclass
class Cache:
    """Sequences and their blocks, for batches that follow each other."""

    block_size: int
    num_blocks: int
    seed: int = 0
    in_order: bool = False  # whether the next block follows the last one
    #: by sequence: its tokens so far, and its blocks
    tokens: dict[int, list[int]] = field(default_factory=dict)
    blocks: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self._free = self._rng.permutation(self.num_blocks).tolist()
        if self.in_order:
            self._free.sort(reverse=True)

    def batch(self, work: Sequence[tuple[int, int]], sample_all: bool = False) -> RaggedBatch:
        """The next tokens (sequence, how many) of some sequences; the last of each is sampled."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        counts, kv_lens = [], []
        for sequence, count in work:
            tokens = self.tokens.setdefault(sequence, [])
            blocks = self.blocks.setdefault(sequence, [])
            new = self._rng.integers(0, VOCAB, count).tolist()
            begin = len(tokens)
            tokens += new
            while len(blocks) * self.block_size < len(tokens):
                blocks.append(self._free.pop())
            token_ids += new
            at = range(begin, begin + count)
            positions += at
            slots += [
                blocks[p // self.block_size] * self.block_size + p % self.block_size for p in at
            ]
            counts.append(count)
            kv_lens.append(len(tokens))
        ends = np.cumsum(counts)
        index = np.arange(ends[-1]) if sample_all else ends - 1
        return RaggedBatch(
            token_ids=np.array(token_ids, np.int32),
            positions=np.array(positions, np.int32),
            cu_seqlens_q=np.concatenate([[0], ends]).astype(np.int32),
            kv_lens=np.array(kv_lens, np.int32),
            block_tables=self._tables([sequence for sequence, _ in work]),
            slot_mapping=np.array(slots, np.int32),
            logits_index=index.astype(np.int32),
        )

    def _tables(self, sequences: Sequence[int]) -> np.ndarray:
        """Padded with a block that does not exist: nobody may look."""
        longest = max(len(self.blocks[s]) for s in sequences)
        rows = [self.blocks[s] + [2**31 - 1] * (longest - len(self.blocks[s])) for s in sequences]
        return np.array(rows, np.int32)
