"""Philox4x32-10 against the vectors that its authors publish (Random123, kat_vectors)."""

import pytest
import torch

from kernels.philox import exponentials, philox4x32

FULL = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([FULL] * 4, [FULL] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    words = philox4x32(torch.tensor([counter]), torch.tensor([key]))

    assert words.tolist() == [expected]


def test_noise_depends_on_its_own_seed_position_and_group_only() -> None:
    seeds = torch.tensor([5, -1, 5, 7, 5])
    positions = torch.tensor([0, 3, 2**33, 0, 0])
    groups = torch.tensor([0, 1, 0, 0, 12_287])

    together = exponentials(seeds, positions, groups)

    alone = [exponentials(seeds[i, None], positions[i, None], groups[i, None]) for i in range(5)]
    assert torch.equal(together, torch.cat(alone))
    assert len(set(together.flatten().tolist())) == 20


def test_noise_is_exponential() -> None:
    many = 12_500
    noise = exponentials(torch.full((many,), 17), torch.arange(many), torch.zeros(many).long())

    counts = torch.histc(torch.exp(-noise.flatten()).float(), bins=100, min=0, max=1)
    chi_square = ((counts - 4 * many / 100) ** 2 / (4 * many / 100)).sum()
    assert noise.min() > 0
    assert chi_square < 149  # the 99.9 % quantile of 99 degrees of freedom
