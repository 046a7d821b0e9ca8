"""Walks the ops of a program over buffers on the device; knows nothing of graphs."""

from collections.abc import Callable, MutableMapping, Sequence

import torch
from torch import Tensor

from kernels.program import (
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
    Rows,
)
from kernels.triton.attention_layers import AttentionLayers
from kernels.triton.embed import embed, embed_positions
from kernels.triton.gated_activation import gated_activation
from kernels.triton.gather_rows import gather_rows
from kernels.triton.linear import linear, needs_product
from kernels.triton.logits import logits
from kernels.triton.mixture_of_experts import Workspace, make_workspace, mixture_of_experts
from kernels.triton.norm import norm
from kernels.triton.rope_store_kv import RopeAngles, rope_store_kv
from kernels.triton.step import PlanKey, Step


class Executor:
    """Weights, KV cache and activations of one model on one device.

    Cache layout: per layer K and V of `[num_blocks + 1, block_size, num_kv_heads, head_dim]`; the
    last block is scratch, where padding is stored and which nobody reads.
    """

    def __init__(
        self,
        program: Program,
        weights: MutableMapping[str, Tensor],
        kv_dtype: torch.dtype | None,
        checkpoint: Callable[[], None],
    ) -> None:
        """Take over the weights, emptying them; see `TritonBackend`."""
        self._program = program
        self._weights: dict[str, Tensor] = {}
        for name in program.weights:
            checkpoint()
            self._weights[name] = weights.pop(name).contiguous()
        self._like = next(iter(self._weights.values())).new_empty(0)
        self.kv_dtype = kv_dtype or self._like.dtype
        self._k_caches: list[Tensor] = []
        self._v_caches: list[Tensor] = []
        self.num_blocks = self.block_size = 0
        self._attention = AttentionLayers(program, self._like)
        self._max_num_rows: dict[Rows, int] = {"tokens": 0, "logits": 0}
        self._buffers: dict[str, Tensor] = {}
        self._product = self._like
        #: by experts, choices per row, width, inner width: layers of one shape take turns
        self._experts: dict[tuple[int, int, int, int], Workspace] = {}
        ropes = {op.rope for op in program.ops if isinstance(op, RopeStoreKv) and op.rope}
        self._angles = {rope: RopeAngles(rope, self._like.device) for rope in ropes}

    @property
    def device(self) -> torch.device:
        return self._like.device

    @property
    def plan_keys(self) -> tuple[PlanKey, ...]:
        """The plans that a step needs."""
        return self._attention.plan_keys

    def kv_cache_bytes(self, num_blocks: int, block_size: int) -> int:
        width = sum(layer.num_kv_heads * layer.head_dim for layer in self._program.kv_layers)
        return 2 * (num_blocks + 1) * block_size * width * self.kv_dtype.itemsize

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        self._k_caches.clear()
        self._v_caches.clear()
        self.num_blocks, self.block_size = num_blocks, block_size
        for layer in self._program.kv_layers:
            shape = (num_blocks + 1, block_size, layer.num_kv_heads, layer.head_dim)
            for caches in (self._k_caches, self._v_caches):
                caches.append(torch.empty(shape, dtype=self.kv_dtype, device=self.device))

    def reserve(self, num_tokens: int, num_logits_rows: int) -> bool:
        """Make room for a step; True: something that ops over tokens use has moved."""
        most = max(self._max_num_rows.values())
        moved = False
        needs: dict[Rows, int] = {"tokens": num_tokens, "logits": num_logits_rows}
        for rows, needed in needs.items():
            if needed > self._max_num_rows[rows]:
                self._max_num_rows[rows] = needed
                self._allocate_buffers(rows)
                moved |= rows == "tokens"
        if max(num_tokens, num_logits_rows) > most:
            self._allocate_scratch(max(num_tokens, num_logits_rows))
            moved = True
        return moved

    def run(self, ops: Sequence[Op], step: Step) -> Tensor | None:
        """Run some of the program's ops in order.

        Returns:
            the logits, a new tensor, if the last op makes them.
        """
        for angles in self._angles.values():
            angles.forget()
        for op in ops:
            if isinstance(op, Logits):
                return self._logits(op, step)
            self._run(op, step)
        return None

    def _run(self, op: Op, step: Step) -> None:
        match op:
            case Embed():
                embed(step.token_ids, self._weights[op.weight], self._buffer(op.out, step))
            case EmbedPositions():
                weight, out = self._weights[op.weight], self._buffer(op.out, step)
                embed_positions(step.positions, weight, out, op.offset)
            case GatherRows():
                x, out = self._buffer(op.input, step), self._buffer(op.out, step)
                gather_rows(x, step.logits_index, out)
            case Norm():
                self._norm(op, step)
            case Linear():
                self._linear(op, step)
            case GatedActivation():
                x, out = self._buffer(op.input, step), self._buffer(op.out, step)
                gated_activation(x, op.kind, out)
            case MixtureOfExperts():
                self._mixture_of_experts(op, step)
            case RopeStoreKv():
                self._rope_store_kv(op, step)
            case PagedAttention():
                self._paged_attention(op, step)

    def _norm(self, op: Norm, step: Step) -> None:
        norm(
            op.kind,
            self._buffer(op.input, step),
            self._weights[op.weight],
            op.eps,
            self._buffer(op.out, step),
            None if op.bias is None else self._weights[op.bias],
            None if op.residual is None else self._buffer(op.residual, step),
        )

    def _linear(self, op: Linear, step: Step) -> None:
        out = self._buffer(op.out, step)
        product = None
        if _needs_product(op):
            product = self._product[: out.numel()].view(out.shape)
        linear(
            self._buffer(op.input, step),
            self._weights[op.weight],
            out,
            None if op.bias is None else self._weights[op.bias],
            op.activation,
            None if op.residual is None else self._buffer(op.residual, step),
            product,
        )

    def _mixture_of_experts(self, op: MixtureOfExperts, step: Step) -> None:
        _, width, inner = self._program.weights[op.down]
        mixture_of_experts(
            self._buffer(op.input, step),
            self._weights[op.router],
            self._weights[op.gate_up],
            self._weights[op.down],
            op.top_k,
            op.activation,
            self._buffer(op.out, step),
            self._experts[op.num_experts, op.top_k, width, inner],
            None if op.residual is None else self._buffer(op.residual, step),
        )

    def _rope_store_kv(self, op: RopeStoreKv, step: Step) -> None:
        rope_store_kv(
            self._buffer(op.qkv, step),
            op.num_heads,
            None if op.rope is None else self._angles[op.rope].at(step.positions),
            self._k_caches[op.layer],
            self._v_caches[op.layer],
            step.slot_mapping,
        )

    def _paged_attention(self, op: PagedAttention, step: Step) -> None:
        q = self._buffer(op.qkv, step)[:, : op.num_heads * op.head_dim]
        self._attention.run(
            op.layer,
            q.view(step.num_tokens, op.num_heads, op.head_dim),
            self._k_caches[op.layer],
            self._v_caches[op.layer],
            self._buffer(op.out, step),
            step,
        )

    def _logits(self, op: Logits, step: Step) -> Tensor:
        x, weight = self._buffer(op.input, step), self._weights[op.weight]
        out = torch.empty(len(x), len(weight), dtype=torch.float32, device=self.device)
        product = out if x.dtype == torch.float32 else x.new_empty(out.shape)
        logits(x, weight, product, out, op.soft_cap)
        return out

    def _buffer(self, name: str, step: Step) -> Tensor:
        is_tokens = self._program.buffers[name].rows == "tokens"
        return self._buffers[name][: step.num_tokens if is_tokens else step.num_logits_rows]

    def _allocate_buffers(self, rows: Rows) -> None:
        """Zeros, so that padding is finite from the first step on."""
        for name, buffer in self._program.buffers.items():
            if buffer.rows == rows:
                shape = (self._max_num_rows[rows], buffer.width)
                self._buffers[name] = self._like.new_zeros(shape)

    def _allocate_scratch(self, num_rows: int) -> None:
        """What ops need beside their buffers."""
        widths = [
            self._program.buffers[op.out].width
            for op in self._program.ops
            if isinstance(op, Linear) and _needs_product(op)
        ]
        self._product = self._like.new_empty(num_rows * max(widths, default=0))
        for op in self._program.ops:
            if isinstance(op, MixtureOfExperts):
                _, width, inner = self._program.weights[op.down]
                self._experts[op.num_experts, op.top_k, width, inner] = make_workspace(
                    num_rows * op.top_k, op.num_experts, width, inner, self._like
                )
        for angles in self._angles.values():
            angles.reserve(num_rows)


def _needs_product(op: Linear) -> bool:
    return needs_product(op.bias is not None, op.activation, in_place=op.residual == op.out)
