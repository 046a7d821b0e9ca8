"""Rotation as complex multiplication; the cache as a dictionary."""

import pytest
import torch

from kernels.program import Rope
from kernels.rope_store_kv import rope_angles, rope_store_kv_reference

HEADS, KV_HEADS, HEAD_DIM, NUM_SLOTS = 6, 2, 10, 50
INV_FREQ = (1.0, 0.4, 0.1, 0.03, 0.007)
POSITIONS = torch.tensor([0, 3, 41, 1000, 7])
SLOTS = torch.tensor([8, 49, 0, 13, 9])


def make_qkv(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, (HEADS + 2 * KV_HEADS) * HEAD_DIM, generator=generator).to(dtype)


def caches(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (NUM_SLOTS, KV_HEADS, HEAD_DIM)
    return torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)


def turned(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    """`x` [num_tokens, num_heads, head_dim] in float64, by complex numbers."""
    half = len(rope.inv_freq)
    angles = POSITIONS.double()[:, None] * torch.tensor(rope.inv_freq).double()
    numbers = torch.complex(x[..., :half].double(), x[..., half : 2 * half].double())
    numbers *= torch.polar(torch.full_like(angles, rope.scale), angles)[:, None]
    return torch.cat([numbers.real, numbers.imag, x[..., 2 * half :].double()], dim=-1)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)]
)
@pytest.mark.parametrize(
    "rope",
    [
        pytest.param(Rope(INV_FREQ), id="whole head"),
        pytest.param(Rope(INV_FREQ[:3]), id="part of the head"),
        pytest.param(Rope(INV_FREQ, scale=1.3), id="scaled"),
    ],
)
def test_q_is_turned_in_place_and_k_and_v_are_stored(
    rope: Rope, dtype: torch.dtype, tolerance: float
) -> None:
    qkv, (k_cache, v_cache) = make_qkv(dtype), caches(dtype)
    heads = qkv.clone().view(5, -1, HEAD_DIM)
    q, k, v = heads[:, :HEADS], heads[:, HEADS:-KV_HEADS], heads[:, -KV_HEADS:]

    rope_store_kv_reference(
        qkv, HEADS, KV_HEADS, rope_angles(rope, POSITIONS), k_cache, v_cache, SLOTS
    )

    our_q = qkv[:, : HEADS * HEAD_DIM].view(5, HEADS, HEAD_DIM)
    for ours, before in ((our_q, q), (k_cache[SLOTS], k)):
        torch.testing.assert_close(
            ours.double(), turned(before, rope), atol=tolerance, rtol=tolerance
        )
    assert torch.equal(v_cache[SLOTS], v)


def test_other_slots_are_not_touched() -> None:
    k_cache, v_cache = caches()

    rope_store_kv_reference(
        make_qkv(), HEADS, KV_HEADS, rope_angles(Rope(INV_FREQ), POSITIONS), k_cache, v_cache, SLOTS
    )

    others = torch.ones(NUM_SLOTS, dtype=torch.bool)
    others[SLOTS] = False
    assert not k_cache[others].any()
    assert not v_cache[others].any()


def test_without_angles_nothing_turns() -> None:
    qkv, (k_cache, v_cache) = make_qkv(), caches()
    before = qkv.clone()

    rope_store_kv_reference(qkv, HEADS, KV_HEADS, None, k_cache, v_cache, SLOTS)

    assert torch.equal(qkv, before)
    k = before[:, HEADS * HEAD_DIM : (HEADS + KV_HEADS) * HEAD_DIM]
    assert torch.equal(k_cache[SLOTS].flatten(1), k)
