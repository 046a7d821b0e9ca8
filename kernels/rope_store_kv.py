"""Turn q and k by their positions, and write k and v to the KV cache.

    qkv              [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim] = [q | k | v] by head
    positions        [num_tokens] int64
    cos, sin         [num_tokens, rotary_dim / 2] float32, from `rope_angles`
    k_cache, v_cache [num_slots, num_kv_heads, head_dim], same dtype as qkv
    slot_mapping     [num_tokens] int64, distinct

In place: the q part of qkv is rotated; its k and v parts are unspecified afterwards. The first
rotary_dim dimensions of a head turn in pairs (i, i + rotary_dim / 2), the others stay. Rotation
is computed in float32 and rounded once. Without cos and sin nothing turns.
"""

import torch
from torch import Tensor

from kernels.program import Rope


def rope_angles(rope: Rope, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine, float32 `[num_tokens, len(inv_freq)]`, times the rope's scale."""
    inv_freq = torch.tensor(rope.inv_freq, dtype=torch.float32, device=positions.device)
    angles = positions.float()[:, None] * inv_freq
    return angles.cos() * rope.scale, angles.sin() * rope.scale


def rope_store_kv_reference(
    qkv: Tensor,
    num_heads: int,
    num_kv_heads: int,
    angles: tuple[Tensor, Tensor] | None,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
) -> None:
    """See the module docstring."""
    heads = qkv.view(len(qkv), num_heads + 2 * num_kv_heads, -1)
    q_and_k, v = heads[:, :-num_kv_heads], heads[:, -num_kv_heads:]
    if angles is not None:
        _rotate(q_and_k, *angles)
    k_cache.index_copy_(0, slot_mapping, q_and_k[:, num_heads:])
    v_cache.index_copy_(0, slot_mapping, v)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    half = cos.shape[1]
    cos, sin = cos[:, None], sin[:, None]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    turned = first * cos - second * sin
    x[..., half : 2 * half] = second * cos + first * sin
    x[..., :half] = turned
