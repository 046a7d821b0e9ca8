"""Rotation and storing against the reference; slots that are not written keep what they hold."""

import pytest
import torch

from kernels.program import Rope
from kernels.rope_store_kv import rope_angles, rope_store_kv_reference
from kernels.triton.interpreter import interpreted
from kernels.triton.rope_store_kv import rope_store_kv

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
NUM_BLOCKS, BLOCK_SIZE = 6, 4
POSITIONS = [0, 3, 41, 1000, 7]
SLOTS = [8, 23, 0, 13, 9]


def make_qkv(num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, (num_heads + 2 * num_kv_heads) * head_dim, generator=generator).to(dtype)


def rope_of(rotary_dim: int, scale: float = 1.0) -> Rope:
    return Rope(tuple(10_000.0 ** (-2 * i / rotary_dim) for i in range(rotary_dim // 2)), scale)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    ("heads", "rope"),
    [
        ((6, 2, 10), rope_of(10, scale=1.3)),
        ((9, 3, 64), rope_of(64)),
        ((4, 1, 80), rope_of(32)),
        ((71, 1, 8), rope_of(8)),
        ((1, 1, 7), rope_of(6)),
        ((6, 2, 10), None),
    ],
    ids=str,
)
def test_q_is_turned_in_place_and_k_and_v_are_stored(
    heads: tuple[int, int, int], rope: Rope | None, dtype: torch.dtype, device: torch.device
) -> None:
    num_heads, num_kv_heads, head_dim = heads
    qkv = make_qkv(*heads, dtype)
    expected_qkv = qkv.clone()
    expected = [
        torch.full((NUM_BLOCKS * BLOCK_SIZE, num_kv_heads, head_dim), -7.0, dtype=dtype)
        for _ in range(2)
    ]
    caches = [x.clone().view(NUM_BLOCKS, BLOCK_SIZE, *x.shape[1:]).to(device) for x in expected]
    angles = None if rope is None else rope_angles(rope, torch.tensor(POSITIONS))
    rope_store_kv_reference(
        *(expected_qkv, num_heads, num_kv_heads, angles),
        *(expected[0], expected[1], torch.tensor(SLOTS)),
    )
    on_device = qkv.to(device)

    rope_store_kv(
        on_device,
        num_heads,
        None if angles is None else (angles[0].to(device), angles[1].to(device)),
        caches[0],
        caches[1],
        torch.tensor(SLOTS, dtype=torch.int32, device=device),
    )

    tolerance = TOLERANCE[dtype]
    q = num_heads * head_dim
    pairs = [
        (on_device[:, :q].cpu(), expected_qkv[:, :q]),
        *zip((c.flatten(0, 1).cpu() for c in caches), expected, strict=True),
    ]
    for actual, reference in pairs:
        torch.testing.assert_close(actual, reference, atol=tolerance, rtol=tolerance)
    assert torch.equal(caches[1].flatten(0, 1).cpu(), expected[1])


def test_a_float8_cache_rounds_and_holds_at_most_448(device: torch.device) -> None:
    qkv = make_qkv(2, 1, 16, torch.float32)
    if interpreted():  # which rounds to float8 wrongly where the exponent would grow
        qkv = qkv.to(torch.float8_e4m3fn).float()
    qkv[0, -3:] = torch.tensor([1e4, -1e4, 0.3125])
    caches = [
        torch.zeros(NUM_BLOCKS, BLOCK_SIZE, 1, 16, dtype=torch.float8_e4m3fn, device=device)
        for _ in range(2)
    ]
    slots = torch.tensor(SLOTS, dtype=torch.int32, device=device)

    rope_store_kv(qkv.to(device), 2, None, caches[0], caches[1], slots)

    k, v = (cache.float().cpu().flatten(0, 1)[SLOTS, 0] for cache in caches)
    expected = qkv[:, 32:].clamp(-448, 448).to(torch.float8_e4m3fn).float()
    assert torch.equal(k, expected[:, :16])
    assert torch.equal(v, expected[:, 16:])
