import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.token_ids import num_ids, pack_ids, unpack_ids


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_packed_ids_come_back(ids: list[int]) -> None:
    packed = pack_ids(ids)

    assert list(unpack_ids(packed)) == ids
    assert num_ids(packed) == len(ids)


def test_ids_are_little_endian_int32() -> None:
    assert pack_ids([1, 256, -1]) == b"\x01\0\0\0" + b"\0\x01\0\0" + b"\xff\xff\xff\xff"


@pytest.mark.parametrize("too_big", [2**31, -(2**31) - 1])
def test_an_id_beyond_32_bits_does_not_fit(too_big: int) -> None:
    with pytest.raises(OverflowError):
        pack_ids([too_big])


def test_a_broken_length_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes length not a multiple of item size"):
        unpack_ids(b"\0" * 7)
