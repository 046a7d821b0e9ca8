"""The weights of a model, each made from a checkpoint's safetensors when it is asked for.

So whoever packs them one after the other never has the model in memory twice. What they need of the
files is checked before the first is read.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np

from common.errors import StartupError
from kernels.host_array import Dtype, HostArray
from services.worker.models.model import Model, Part
from services.worker.safetensors_file import SafetensorsError, SafetensorsFile

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

Progress: TypeAlias = Callable[[int, int], None]  # weights read so far, of how many
Shape: TypeAlias = tuple[int, ...]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]  # tensor name -> file name


class Weights(Mapping[str, HostArray]):
    """One array per entry of `model.program.weights`, on the host, in memory of its own.

    Asking twice reads twice.
    """

    def __init__(
        self, model_dir: Path, model: Model, dtype: Dtype, progress: Progress | None = None
    ) -> None:
        """Read the headers of the files.

        Args:
            dtype: of all weights, whatever the files hold.
            progress: called after each weight that is read.

        Raises:
            StartupError: there are no safetensors, a file is damaged, or tensors are missing,
                not expected or of another shape; the message names them.
        """
        self._model_dir = model_dir
        self._shapes = model.program.weights
        self._dtype = dtype
        self._progress = progress
        self._num_read = 0
        self._files = _find_tensors(model_dir)
        self._parts = _parts(model, set(self._files))
        self._check_names(model.ignored)
        self._check_shapes()

    def __len__(self) -> int:
        return len(self._shapes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __getitem__(self, name: str) -> HostArray:
        """Read a weight.

        Raises:
            StartupError: a file cannot be read any more, or has a dtype that is not supported.
        """
        weight, parts = np.empty(self._shapes[name], self._dtype), self._parts[name]
        for part, place in zip(parts, _places(weight, parts), strict=True):
            self._read(part.tensor, place)
        self._num_read += 1
        if self._progress is not None:
            self._progress(self._num_read, len(self))
        return weight

    def _read(self, tensor: str, place: HostArray) -> None:
        try:
            self._files[tensor].read_into(tensor, place)
        except (OSError, SafetensorsError) as error:
            raise _unreadable(self._model_dir, error) from None

    def _check_names(self, ignored: frozenset[str]) -> None:
        found = set(self._files)
        wanted = {part.tensor for parts in self._parts.values() for part in parts}
        problems = [
            f"{label}: {_some(names)}"
            for label, names in (
                ("missing", wanted - found),
                ("not expected", found - wanted - ignored),
            )
            if names
        ]
        if problems:
            raise StartupError(
                f"weights in {self._model_dir} do not fit its config.json; {'; '.join(problems)}"
            )

    def _check_shapes(self) -> None:
        for name, parts in self._parts.items():
            for part in parts:
                found = self._files[part.tensor].tensors[part.tensor].shape
                needed = self._shapes[name]
                if len(parts) > 1:
                    needed = (part.num_rows, *needed[-1:]) if len(needed) > 1 else (part.num_rows,)
                if found != needed:
                    raise StartupError(
                        f"{part.tensor} in {self._model_dir} has shape {list(found)}; "
                        f"its config.json asks for {list(needed)}"
                    )


def _find_tensors(model_dir: Path) -> dict[str, SafetensorsFile]:
    """The file of each tensor."""
    try:
        if (model_dir / INDEX_FILE).exists():
            return _find_in_shards(model_dir)
        if (model_dir / SINGLE_FILE).exists():
            file = SafetensorsFile(model_dir / SINGLE_FILE)
            return dict.fromkeys(file.tensors, file)
    except (OSError, SafetensorsError, msgspec.MsgspecError) as error:
        raise _unreadable(model_dir, error) from None
    others = sorted(p.name for p in model_dir.glob("*") if p.suffix in {".bin", ".pt", ".gguf"})
    hint = f" ({', '.join(others)} cannot be used: convert it)" if others else ""
    raise StartupError(f"{model_dir} has no {SINGLE_FILE} and no {INDEX_FILE}{hint}")


def _find_in_shards(model_dir: Path) -> dict[str, SafetensorsFile]:
    content = (model_dir / INDEX_FILE).read_bytes()
    weight_map = msgspec.json.decode(content, type=_Index).weight_map
    # Only the last part of a name: an index cannot point out of its directory.
    names = {tensor: Path(file).name for tensor, file in weight_map.items()}
    files = {name: SafetensorsFile(model_dir / name) for name in sorted(set(names.values()))}
    for tensor, name in names.items():
        if tensor not in files[name].tensors:
            raise SafetensorsError(
                model_dir / name, f"no {tensor}, which {INDEX_FILE} says is there"
            )
    return {tensor: files[name] for tensor, name in names.items()}


def _unreadable(model_dir: Path, error: Exception) -> StartupError:
    return StartupError(f"cannot read the weights in {model_dir}: {error}")


def _some(names: set[str], limit: int = 5) -> str:
    first = ", ".join(sorted(names)[:limit])
    return first if len(names) <= limit else f"{first} and {len(names) - limit} more"


def _parts(model: Model, found: set[str]) -> dict[str, tuple[Part, ...]]:
    """The parts of each weight by the names that this checkpoint has for them."""
    others = {n: parts for n, parts in model.alternatives.items() if parts[0].tensor in found}
    return {**model.sources, **others}


def _places(weight: HostArray, parts: tuple[Part, ...]) -> list[HostArray]:
    """The memory that each part fills; of three dimensions, matrices lie one below the other."""
    if len(parts) == 1:
        return [weight]
    rows = weight.reshape(-1, weight.shape[-1]) if weight.ndim == 3 else weight
    ends = np.cumsum([part.num_rows for part in parts])
    return np.split(rows, ends[:-1])
