"""Runs a program op by op in plain torch: what the program means, and what runs everywhere."""

import math
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from kernels.embed import embed_reference
from kernels.embed_positions import embed_positions_reference
from kernels.gated_activation import gated_activation_reference
from kernels.gather_rows import gather_rows_reference
from kernels.linear import PackedWeight, linear_packed, pack_weight
from kernels.logits import logits_packed
from kernels.mixture_of_experts import mixture_of_experts_reference
from kernels.norm import norm_reference
from kernels.paged_attention import AttentionGroup, group_sequences, paged_attention_reference
from kernels.program import (
    Embed,
    EmbedPositions,
    GatedActivation,
    GatherRows,
    Linear,
    Logits,
    MixtureOfExperts,
    Norm,
    PagedAttention,
    Program,
    Rope,
    RopeStoreKv,
)
from kernels.ragged_batch import Int32Array, RaggedBatch
from kernels.reference_sampler import ReferenceSampler
from kernels.rope_store_kv import rope_angles, rope_store_kv_reference

Weight: TypeAlias = Tensor | PackedWeight


@dataclass(slots=True)
class _Pass:
    """What the ops of one forward pass share; angles and groups are made when first needed."""

    batch: RaggedBatch
    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    logits_index: Tensor
    buffers: dict[str, Tensor] = field(default_factory=dict)
    angles: dict[Rope, tuple[Tensor, Tensor]] = field(default_factory=dict)
    groups: dict[int | None, tuple[AttentionGroup, ...]] = field(default_factory=dict)


class ReferenceBackend:
    """A `kernels.backend.Backend` in plain torch, on any device that torch knows.

    Cache layout: per layer K and V of `[num_blocks * block_size + 1, num_kv_heads, head_dim]`; the
    extra slot is always zero (see `kernels.paged_attention`).
    """

    def __init__(
        self,
        program: Program,
        weights: MutableMapping[str, Tensor],
        checkpoint: Callable[[], None] = lambda: None,
    ) -> None:
        """Take over the weights.

        Args:
            program: validated here.
            weights: one tensor per entry of `program.weights`, all of one dtype and device. It is
                emptied: each is packed and the plain one freed in turn, so that at no time two
                copies of the model exist. Only a table that also embeds tokens is kept twice.
            checkpoint: called between weights; may raise to give up.

        Raises:
            ProgramError: the program contradicts itself.
        """
        program.validate()
        self._program = program
        self._like = next(iter(weights.values())).new_empty(0)  # dtype and device of everything
        embedded = {op.weight for op in program.ops if isinstance(op, Embed | EmbedPositions)}
        self._tables = {name: weights[name] for name in embedded}
        self._weights = _pack_all(program, weights, embedded, checkpoint)
        self._k_caches: list[Tensor] = []
        self._v_caches: list[Tensor] = []
        self._block_size = 0
        self._sampler = ReferenceSampler()

    @property
    def name(self) -> str:
        return "reference"

    @property
    def sampler(self) -> ReferenceSampler:
        return self._sampler

    @property
    def blocks_per_group(self) -> int:
        return 1

    def kv_cache_bytes(self, num_blocks: int, block_size: int) -> int:
        num_slots = num_blocks * block_size + 1
        width = sum(layer.num_kv_heads * layer.head_dim for layer in self._program.kv_layers)
        return 2 * num_slots * width * self._like.element_size()

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        self._k_caches.clear()
        self._v_caches.clear()
        self._block_size = block_size
        for layer in self._program.kv_layers:
            shape = (num_blocks * block_size + 1, layer.num_kv_heads, layer.head_dim)
            self._k_caches.append(_zeros(shape, self._like))
            self._v_caches.append(_zeros(shape, self._like))

    def prepare_memory(self) -> bool:
        return False

    @torch.inference_mode()
    def run(self, batch: RaggedBatch) -> Tensor:
        state = _Pass(
            batch,
            token_ids=self._to_device(batch.token_ids),
            positions=self._to_device(batch.positions),
            slot_mapping=self._to_device(batch.slot_mapping),
            logits_index=self._to_device(batch.logits_index),
        )
        for op in self._program.ops:
            match op:
                case RopeStoreKv():
                    self._rope_store_kv(op, state)
                case PagedAttention():
                    self._paged_attention(op, state)
                case EmbedPositions():
                    embed_positions_reference(
                        state.buffers[op.out], state.positions, self._tables[op.weight], op.offset
                    )
                case MixtureOfExperts():
                    state.buffers[op.out] = self._mixture_of_experts(op, state)
                case Logits():
                    return logits_packed(
                        state.buffers[op.input], self._weights[op.weight], op.soft_cap
                    )
                case _:
                    state.buffers[op.out] = self._pointwise(op, state)
        raise AssertionError("validate() holds: a program ends with Logits")

    def _pointwise(
        self, op: Embed | Norm | Linear | GatedActivation | GatherRows, state: _Pass
    ) -> Tensor:
        """Ops in which a row depends on no other."""
        buffers = state.buffers
        match op:
            case Embed():
                return embed_reference(state.token_ids, self._tables[op.weight])
            case Norm():
                return norm_reference(
                    op.kind,
                    buffers[op.input],
                    self._plain(op.weight),
                    op.eps,
                    None if op.bias is None else self._plain(op.bias),
                    None if op.residual is None else buffers[op.residual],
                )
            case Linear():
                return linear_packed(
                    buffers[op.input],
                    self._weights[op.weight],
                    None if op.bias is None else self._plain(op.bias),
                    op.activation,
                    None if op.residual is None else buffers[op.residual],
                )
            case GatedActivation():
                return gated_activation_reference(buffers[op.input], op.kind)
            case GatherRows():
                return gather_rows_reference(buffers[op.input], state.logits_index)

    def _mixture_of_experts(self, op: MixtureOfExperts, state: _Pass) -> Tensor:
        return mixture_of_experts_reference(
            state.buffers[op.input],
            self._plain(op.router),
            self._plain(op.gate_up),
            self._plain(op.down),
            op.top_k,
            op.activation,
            None if op.residual is None else state.buffers[op.residual],
        )

    def _rope_store_kv(self, op: RopeStoreKv, state: _Pass) -> None:
        if op.rope is not None and op.rope not in state.angles:
            state.angles[op.rope] = rope_angles(op.rope, state.positions)
        rope_store_kv_reference(
            state.buffers[op.qkv],
            op.num_heads,
            op.num_kv_heads,
            None if op.rope is None else state.angles[op.rope],
            self._k_caches[op.layer],
            self._v_caches[op.layer],
            state.slot_mapping,
        )

    def _paged_attention(self, op: PagedAttention, state: _Pass) -> None:
        k_cache = self._k_caches[op.layer]
        if op.sliding_window not in state.groups:
            state.groups[op.sliding_window] = group_sequences(
                state.batch, self._block_size, len(k_cache) - 1, self._like, op.sliding_window
            )
        q = state.buffers[op.qkv][:, : op.num_heads * op.head_dim]
        state.buffers[op.out] = paged_attention_reference(
            q.view(len(q), op.num_heads, op.head_dim),
            k_cache,
            self._v_caches[op.layer],
            state.groups[op.sliding_window],
            op.scale,
            op.soft_cap,
        )

    def _plain(self, name: str) -> Tensor:
        weight = self._weights[name]
        assert isinstance(weight, Tensor), "only matrices of linear and logits are packed"
        return weight

    def _to_device(self, array: Int32Array) -> Tensor:
        return torch.from_numpy(array).to(self._like.device, torch.int64)


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros of the dtype and device of `like`; on a CPU, pages are taken when first written.

    torch writes its zeros, which for a cache of gigabytes takes seconds and all of the memory at
    once; numpy asks the system for pages that are zero already.
    """
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    memory = np.zeros(math.prod(shape) * like.element_size(), np.uint8)
    return torch.from_numpy(memory).view(like.dtype).view(shape)


def _pack_all(
    program: Program,
    weights: MutableMapping[str, Tensor],
    embedded: set[str],
    checkpoint: Callable[[], None],
) -> Mapping[str, Weight]:
    """Pack the matrices that rows are multiplied by, one at a time; empties `weights`."""
    multiplied = {op.weight for op in program.ops if isinstance(op, Linear | Logits)}
    packed: dict[str, Weight] = {}
    for name in program.weights:
        checkpoint()
        weight = weights.pop(name)
        if name in multiplied:
            packed[name] = pack_weight(weight)
        elif name not in embedded:
            packed[name] = weight
    return packed
