"""A file of tensors in the safetensors format, read piece by piece.

The format: 8 bytes that count those of the header; the header, JSON that says of each tensor its
dtype, its shape, and where it begins and ends; the tensors' bytes. The library of that name maps a
whole file, whose pages then count as memory of this process, beside what is made of them. What is
read instead does not, and a file that shrinks meanwhile is an error and not a signal.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from kernels.host_array import BFLOAT16, FLOAT16, FLOAT32, Dtype, HostArray

Bytes: TypeAlias = NDArray[np.uint8]

_DTYPES: Mapping[str, Dtype] = {
    "F64": np.dtype(np.float64),
    "F32": FLOAT32,
    "F16": FLOAT16,
    "BF16": BFLOAT16,
}
_COUNT_BYTES = 8
# What the library accepts, too: no header is longer by honest means.
_MAX_HEADER_BYTES = 100_000_000


class SafetensorsError(Exception):
    """A file is not what the format says; the text says which and how."""

    def __init__(self, path: Path, complaint: str) -> None:
        super().__init__(f"{path.name}: {complaint}")


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]  # behind the header


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies."""

    dtype: str  # as the format spells it
    shape: tuple[int, ...]
    offset: int  # bytes from the beginning of the file
    num_bytes: int


class SafetensorsFile:
    """The header of a file; it is opened again for every read."""

    def __init__(self, path: Path) -> None:
        """Read and check the header.

        Raises:
            OSError: the file cannot be read.
            SafetensorsError: it is damaged.
        """
        self._path = path
        #: by name
        self.tensors: Mapping[str, StoredTensor] = _read_header(path)

    def read_into(self, name: str, out: HostArray) -> None:
        """Read a tensor, converted to the dtype of `out`.

        Args:
            out: of the tensor's shape, C-contiguous.

        Raises:
            OSError: the file cannot be read.
            SafetensorsError: it has become shorter, or the tensor's dtype is not of a known kind.
        """
        tensor = self.tensors[name]
        dtype = _DTYPES.get(tensor.dtype)
        if dtype is None:
            known = ", ".join(_DTYPES)
            raise SafetensorsError(
                self._path, f"{name} has dtype {tensor.dtype}; supported are {known}"
            )
        stored = out if dtype == out.dtype else np.empty(out.shape, dtype)
        with self._path.open("rb", buffering=0) as file:
            file.seek(tensor.offset)
            if not _fill(stored.reshape(-1).view(np.uint8), file):
                raise SafetensorsError(self._path, "it has become shorter than its header says")
        if stored is not out:
            with np.errstate(over="ignore"):  # infinite is what too large a number becomes
                out[...] = stored


def _fill(out: Bytes, file: FileIO) -> bool:
    """Whether there was enough; one read gives at most 2 GiB."""
    while len(out):
        num_read = file.readinto(out.data)
        if not num_read:
            return False
        out = out[num_read:]
    return True


def _read_header(path: Path) -> dict[str, StoredTensor]:
    with path.open("rb") as file:
        num_bytes = int.from_bytes(file.read(_COUNT_BYTES), "little")
        if num_bytes > _MAX_HEADER_BYTES:
            raise SafetensorsError(path, f"a header of {num_bytes} bytes")
        header = file.read(num_bytes)
    data_begins, file_bytes = _COUNT_BYTES + num_bytes, path.stat().st_size
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        decoded = {n: msgspec.json.decode(raw, type=_Entry) for n, raw in entries.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SafetensorsError(path, f"damaged header: {error}") from None
    tensors = {name: _stored(entry, data_begins) for name, entry in decoded.items()}
    for name, tensor in tensors.items():
        if complaint := _complaint(tensor, data_begins, file_bytes):
            raise SafetensorsError(path, f"{name} {complaint}")
    return tensors


def _stored(entry: _Entry, data_begins: int) -> StoredTensor:
    begin, end = entry.data_offsets
    return StoredTensor(entry.dtype, entry.shape, data_begins + begin, end - begin)


def _complaint(tensor: StoredTensor, data_begins: int, file_bytes: int) -> str | None:
    """What is wrong with where a tensor lies; None: nothing."""
    end = tensor.offset + tensor.num_bytes
    if not data_begins <= tensor.offset <= end <= file_bytes:
        return "lies outside the file"
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is not None and tensor.num_bytes != math.prod(tensor.shape) * dtype.itemsize:
        return f"has {tensor.num_bytes} bytes, which are not its shape's"
    return None
