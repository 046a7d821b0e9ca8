"""Causal attention of a ragged batch over the paged KV cache, grouped queries.

    q                [num_tokens, num_heads, head_dim]
    k_cache, v_cache [num_slots + 1, num_kv_heads, head_dim]; slot = block_id * block_size + offset
    out              [num_tokens, num_heads * head_dim], same dtype

Query head h reads KV head h // (num_heads / num_kv_heads). A query at position p sees positions
p' <= p of its own sequence, with a sliding window w only p' > p - w; scores are
q · k * scale, then soft_cap * tanh(scores / soft_cap) if there is a cap. Softmax and the sums over
keys are computed in float32; the result is rounded once.

The reference pads: sequences with one query and a similar length are attended together, chunks one
by one. Padding reads the extra last slot of the cache, which is zero and never written, so that
whatever stale blocks hold (NaN too) stays out of every result.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.ragged_batch import RaggedBatch

# Decodes whose KV lengths lie between the same two powers of two are padded to the longest of
# them, so at most half of what is gathered is padding; all shorter than 64 go together.
_SHORTEST_LENGTH_BITS = 6


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Sequences attended in one call: many with one query each, or one with many."""

    rows: Tensor  # [num_seqs * num_queries] int64, rows of q
    slots: Tensor  # [num_seqs * max_kv_len] int64, the extra last slot where padded
    mask: Tensor  # [num_seqs, 1, num_queries, max_kv_len], 0 or -inf, dtype of q

    @property
    def num_seqs(self) -> int:
        return self.mask.shape[0]


def group_sequences(
    batch: RaggedBatch,
    block_size: int,
    zero_slot: int,
    like: Tensor,
    sliding_window: int | None = None,
) -> tuple[AttentionGroup, ...]:
    """Prepare a batch for `paged_attention_reference`; the same for all layers of one window.

    Args:
        zero_slot: the extra slot of the cache, which padding reads.
        like: a tensor of q's dtype and device.
    """
    num_queries = np.diff(batch.cu_seqlens_q)
    decodes: defaultdict[int, list[int]] = defaultdict(list)
    members: list[list[int]] = []
    for sequence, kv_len in enumerate(batch.kv_lens.tolist()):
        if num_queries[sequence] == 1:
            decodes[max(kv_len.bit_length(), _SHORTEST_LENGTH_BITS)].append(sequence)
        else:
            members.append([sequence])
    members.extend(decodes.values())
    return tuple(
        _make_group(batch, np.array(group), block_size, zero_slot, like, sliding_window)
        for group in members
    )


def paged_attention_reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    groups: Sequence[AttentionGroup],
    scale: float,
    soft_cap: float | None = None,
) -> Tensor:
    """See the module docstring; `groups` come from `group_sequences`."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for group in groups:
        attend = _attend_decodes if group.mask.shape[2] == 1 else _attend_chunk
        keys, values = (
            cache.index_select(0, group.slots)
            .view(group.num_seqs, -1, *cache.shape[1:])
            .transpose(1, 2)
            for cache in (k_cache, v_cache)
        )
        queries = q.index_select(0, group.rows)
        out.index_copy_(0, group.rows, attend(queries, keys, values, group.mask, scale, soft_cap))
    return out.flatten(1)


def _make_group(
    batch: RaggedBatch,
    sequences: np.ndarray,
    block_size: int,
    zero_slot: int,
    like: Tensor,
    sliding_window: int | None,
) -> AttentionGroup:
    begin, end = batch.cu_seqlens_q[sequences], batch.cu_seqlens_q[sequences + 1]
    kv_lens = batch.kv_lens[sequences]
    rows = begin[:, None] + np.arange(end[0] - begin[0])
    key = np.arange(kv_lens.max())
    slots = batch.block_tables[sequences][:, key // block_size].astype(np.int64)
    slots = np.where(key < kv_lens[:, None], slots * block_size + key % block_size, zero_slot)
    query = batch.positions[rows][..., None]  # [num_seqs, num_queries, 1]
    hidden = key > query
    if sliding_window is not None:
        hidden |= key <= query - sliding_window
    mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    mask.masked_fill_(torch.from_numpy(hidden).to(like.device), float("-inf"))
    return AttentionGroup(
        rows=torch.from_numpy(rows.astype(np.int64).ravel()).to(like.device),
        slots=torch.from_numpy(slots.ravel()).to(like.device),
        mask=mask[:, None],
    )


def _attend_decodes(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, soft_cap: float | None
) -> Tensor:
    """One query per sequence: the query heads of a KV head stand in for query positions.

    q [num_seqs, num_heads, head_dim], k and v [num_seqs, num_kv_heads, max_kv_len, head_dim].
    """
    grouped = q.view(len(q), k.shape[1], -1, q.shape[-1])
    return _attend(grouped, k, v, mask, scale, soft_cap).reshape(q.shape)


def _attend_chunk(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, soft_cap: float | None
) -> Tensor:
    """Many queries of one sequence: the query heads of a KV head stand in for a batch.

    q [num_queries, num_heads, head_dim], k and v [1, num_kv_heads, kv_len, head_dim].
    """
    num_queries, num_heads, head_dim = q.shape
    grouped = q.view(num_queries, k.shape[1], -1, head_dim).permute(2, 1, 0, 3)
    group_size = grouped.shape[0]
    k, v = (x.expand(group_size, -1, -1, -1) for x in (k, v))
    out = _attend(grouped, k, v, mask, scale, soft_cap)  # [group, kv_heads, queries, head_dim]
    return out.permute(2, 1, 0, 3).reshape(num_queries, num_heads, head_dim)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, soft_cap: float | None
) -> Tensor:
    if soft_cap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scores = (q.float() @ k.float().transpose(-1, -2)) * scale
    weights = torch.softmax(torch.tanh(scores / soft_cap) * soft_cap + mask, dim=-1)
    return (weights @ v.float()).to(q.dtype)
