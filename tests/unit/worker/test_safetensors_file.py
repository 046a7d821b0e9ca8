"""The library's own files, read by us; and files that are none."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from kernels.host_array import HostArray
from services.worker.safetensors_file import SafetensorsError, SafetensorsFile

TENSORS: dict[str, HostArray] = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "half": np.linspace(-2, 2, 5).astype(np.float16),
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 4), np.float32),
}
SOME_BYTES = st.binary(max_size=12) | st.integers(0, 2**64 - 1).map(
    lambda n: n.to_bytes(8, "little")
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "some.safetensors"
    save_file(TENSORS, path, metadata={"format": "np"})
    return path


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_is_read_as_the_library_wrote_it(name: str, path: Path) -> None:
    file, expected = SafetensorsFile(path), TENSORS[name]
    read = np.empty_like(expected)

    file.read_into(name, read)

    assert file.tensors[name].shape == expected.shape
    assert np.array_equal(read, expected)


def test_a_tensor_is_read_into_a_part_of_an_array(path: Path) -> None:
    whole = np.full((5, 4), -1, np.float64)

    SafetensorsFile(path).read_into("matrix", whole[1:4])

    assert np.array_equal(whole[1:4], TENSORS["matrix"].astype(np.float64))
    assert (whole[[0, 4]] == -1).all()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "damaged header"),
        ((2**40).to_bytes(8, "little") + b"{}", "a header of 1099511627776 bytes"),
        ((2).to_bytes(8, "little") + b"[]", "damaged header"),
        ((9).to_bytes(8, "little") + b'{"a": {}}', "damaged header.*dtype"),
    ],
)
def test_what_is_no_such_file_is_named(content: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(content)

    with pytest.raises(SafetensorsError, match=f"^bad.safetensors: {complaint}"):
        SafetensorsFile(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    ("offsets", "complaint"),
    [("[0,99]", "lies outside"), ("[-4,4]", "outside"), ("[4,0]", "outside"), ("[0,4]", "4 bytes")],
)
def test_a_tensor_that_lies_wrong_is_named(offsets: str, complaint: str, tmp_path: Path) -> None:
    header = f'{{"a": {{"dtype": "F32", "shape": [2], "data_offsets": {offsets}}}}}'.encode()
    (tmp_path / "bad").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))

    with pytest.raises(SafetensorsError, match=rf"bad: a .*{complaint}"):
        SafetensorsFile(tmp_path / "bad")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 300), junk=SOME_BYTES, cut=st.integers(0, 100))
def test_any_damage_is_an_error_or_harmless(path: Path, at: int, junk: bytes, cut: int) -> None:
    sound = path.read_bytes()
    damaged = path.with_name("damaged")
    damaged.write_bytes((sound[:at] + junk + sound[at + len(junk) :])[: len(sound) - cut])

    try:
        file = SafetensorsFile(damaged)
        for name in file.tensors.keys() & TENSORS.keys():
            if file.tensors[name].shape == TENSORS[name].shape:
                file.read_into(name, np.empty_like(TENSORS[name]))
    except SafetensorsError:
        pass
