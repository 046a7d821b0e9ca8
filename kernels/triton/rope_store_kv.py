"""Turn q and k by their positions, and write k and v to the KV cache.

    qkv              [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim] = [q | k | v] by head
    cos, sin         [num_tokens, rotary_dim / 2] float32
    k_cache, v_cache [num_blocks, block_size, num_kv_heads, head_dim], qkv's dtype or float8_e4m3fn
    slot_mapping     [num_tokens] int32, slot = block_id * block_size + offset

What is computed stands in `kernels.rope_store_kv`. The k and v parts of qkv are only read. Slots of
live tokens are distinct; padding tokens may share one, whose content nobody reads. A float8 cache
rounds to nearest and holds at most 448, larger values become that.

Memory bound: 2 * num_tokens * (num_heads + 2 * num_kv_heads) * head_dim * itemsize bytes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.program import Rope

_ELEMENTS = 2048  # of one program, about


class RopeAngles:
    """Cosines and sines of one rope for a step's positions: all layers share them.

    As exact as `kernels.rope_store_kv.rope_angles`, whose float32 functions they are.
    """

    def __init__(self, rope: Rope, device: torch.device) -> None:
        self._inv_freq = torch.tensor(rope.inv_freq, dtype=torch.float32, device=device)
        self._scale = rope.scale
        self._is_known = False
        self.reserve(0)

    def reserve(self, num_tokens: int) -> None:
        """Make room; what was known is forgotten."""
        shape = (num_tokens, len(self._inv_freq))
        self._cos, self._sin = (self._inv_freq.new_empty(shape) for _ in range(2))
        self.forget()

    def forget(self) -> None:
        """A new step begins."""
        self._is_known = False

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 `[num_tokens, rotary_dim / 2]`, made once per step.

        Args:
            positions: int32 [num_tokens], the same until `forget`.
        """
        cos, sin = self._cos[: len(positions)], self._sin[: len(positions)]
        if not self._is_known:
            self._is_known = True
            angles = positions.float()[:, None] * self._inv_freq
            torch.mul(angles.cos(), self._scale, out=cos)
            torch.mul(angles.sin(), self._scale, out=sin)
        return cos, sin


@triton.jit
def _to_cache(x: tl.tensor, DTYPE: tl.constexpr, IS_FLOAT8: tl.constexpr) -> tl.tensor:
    if IS_FLOAT8:
        x = tl.minimum(tl.maximum(x.to(tl.float32), -448.0), 448.0)
    return x.to(DTYPE)


@triton.jit
def _rope_store_kv_kernel(
    qkv_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    k_cache_ptr: tl.tensor,
    v_cache_ptr: tl.tensor,
    slot_mapping_ptr: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,  # rotary_dim / 2; 0: nothing turns
    DIM_PAD: tl.constexpr,
    HEADS: tl.constexpr,  # per program
    IS_FLOAT8: tl.constexpr,
) -> None:
    """Grid (tokens, groups of heads): a head of q, k or v is a row of the tile."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    dims = tl.arange(0, DIM_PAD)
    ALL_HEADS: tl.constexpr = NUM_HEADS + 2 * NUM_KV_HEADS
    dtype = qkv_ptr.dtype.element_ty
    at = qkv_ptr + token * (ALL_HEADS * HEAD_DIM) + head[:, None] * HEAD_DIM + dims[None, :]
    mask = (head < ALL_HEADS)[:, None] & (dims < HEAD_DIM)[None, :]
    x = tl.load(at, mask=mask, other=0.0)
    is_q = head < NUM_HEADS
    is_v = head >= NUM_HEADS + NUM_KV_HEADS
    if HALF > 0:
        # Dimension i turns with i + HALF; each reads its partner, and the first the sine negated.
        turns = dims < 2 * HALF
        is_first = dims < HALF
        partner = tl.where(is_first, HALF, -HALF)
        turned = mask & turns[None, :] & (head < NUM_HEADS + NUM_KV_HEADS)[:, None]
        other = tl.load(at + partner[None, :], mask=turned, other=0.0).to(tl.float32)
        angle = token * HALF + tl.where(is_first, dims, dims - HALF)
        cos = tl.load(cos_ptr + angle, mask=turns, other=1.0)
        sin = tl.load(sin_ptr + angle, mask=turns, other=0.0)
        sin = tl.where(is_first, -sin, sin)
        rotated = (x.to(tl.float32) * cos[None, :] + other * sin[None, :]).to(dtype)
        # Every thread has to have read its partner before q is written over.
        tl.debug_barrier()
        x = tl.where(turned, rotated, x)
        tl.store(at, x, mask=turned & is_q[:, None])
    slot = tl.load(slot_mapping_ptr + token).to(tl.int64)
    kv_head = tl.where(is_v, head - NUM_HEADS - NUM_KV_HEADS, head - NUM_HEADS)
    cached = (slot * NUM_KV_HEADS + kv_head)[:, None] * HEAD_DIM + dims[None, :]
    k = _to_cache(x, k_cache_ptr.dtype.element_ty, IS_FLOAT8)
    tl.store(k_cache_ptr + cached, k, mask=mask & ~is_q[:, None] & ~is_v[:, None])
    tl.store(v_cache_ptr + cached, k, mask=mask & is_v[:, None])


def rope_store_kv(
    qkv: Tensor,
    num_heads: int,
    angles: tuple[Tensor, Tensor] | None,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
) -> None:
    """Write q in place, and the cache; see the module docstring for shapes.

    Args:
        angles: cosines and sines; None: nothing turns.
    """
    num_tokens = len(qkv)
    num_kv_heads, head_dim = k_cache.shape[2:]
    all_heads = num_heads + 2 * num_kv_heads
    assert qkv.shape == (num_tokens, all_heads * head_dim)
    assert slot_mapping.shape == (num_tokens,)
    assert all(t.is_contiguous() for t in (qkv, k_cache, v_cache, slot_mapping))
    if num_tokens == 0:
        return
    cos, sin = (slot_mapping, slot_mapping) if angles is None else angles
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    dim_pad = int(triton.next_power_of_2(head_dim))
    heads = max(1, min(_ELEMENTS // dim_pad, int(triton.next_power_of_2(all_heads))))
    _rope_store_kv_kernel[(num_tokens, triton.cdiv(all_heads, heads))](
        qkv,
        cos,
        sin,
        k_cache,
        v_cache,
        slot_mapping,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        HALF=0 if angles is None else cos.shape[1],
        DIM_PAD=dim_pad,
        HEADS=heads,
        IS_FLOAT8=k_cache.dtype == torch.float8_e4m3fn,
    )
