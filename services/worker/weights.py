"""Read a checkpoint's safetensors straight to where the weights live.

One tensor is on the host at a time (mapped from its file, not read whole), and each is converted
to the right dtype on its way to its place in a fused matrix.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.errors import StartupError
from services.worker.models.model import Model, Part

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

Progress: TypeAlias = Callable[[int, int], None]  # tensors read so far, of how many


class _Index(msgspec.Struct):
    weight_map: dict[str, str]  # tensor name -> file name


def load_weights(
    model_dir: Path,
    model: Model,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Load all weights of a model.

    Returns:
        One tensor per entry of `model.program.weights`, of `dtype` on `device`.

    Raises:
        StartupError: there are no safetensors, a file is damaged, or tensors are missing,
            not expected or of another shape; the message names them.
    """
    shards = _find_shards(model_dir)
    found = {name for names in shards.values() for name in names}
    sources = _sources(model, found)
    wanted = {part.tensor for parts in sources.values() for part in parts}
    _check_names(model_dir, wanted, found, model.ignored)
    weights = {
        name: torch.empty(shape, dtype=dtype, device=device)
        for name, shape in model.program.weights.items()
    }
    places = _places(sources, weights)
    for done, (name, tensor) in enumerate(_read(shards, wanted), start=1):
        place = places[name]
        if tensor.shape != place.shape:
            raise StartupError(
                f"{name} in {model_dir} has shape {list(tensor.shape)}; "
                f"its config.json asks for {list(place.shape)}"
            )
        place.copy_(tensor)
        if progress is not None:
            progress(done, len(wanted))
    return weights


def _find_shards(model_dir: Path) -> dict[Path, list[str]]:
    """Tensor names by file."""
    try:
        if (model_dir / INDEX_FILE).exists():
            content = (model_dir / INDEX_FILE).read_bytes()
            shards: dict[Path, list[str]] = {}
            for name, file in msgspec.json.decode(content, type=_Index).weight_map.items():
                shards.setdefault(model_dir / Path(file).name, []).append(name)
            return shards
        if (model_dir / SINGLE_FILE).exists():
            with safe_open(model_dir / SINGLE_FILE, framework="pt") as file:
                return {model_dir / SINGLE_FILE: list(file.keys())}
    except (OSError, SafetensorError, msgspec.MsgspecError) as error:
        raise StartupError(f"cannot read the weights in {model_dir}: {error}") from None
    others = sorted(p.name for p in model_dir.glob("*") if p.suffix in {".bin", ".pt", ".gguf"})
    hint = f" ({', '.join(others)} cannot be used: convert it)" if others else ""
    raise StartupError(f"{model_dir} has no {SINGLE_FILE} and no {INDEX_FILE}{hint}")


def _check_names(
    model_dir: Path, wanted: set[str], found: set[str], ignored: frozenset[str]
) -> None:
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
            f"weights in {model_dir} do not fit its config.json; {'; '.join(problems)}"
        )


def _some(names: set[str], limit: int = 5) -> str:
    first = ", ".join(sorted(names)[:limit])
    return first if len(names) <= limit else f"{first} and {len(names) - limit} more"


def _sources(model: Model, found: set[str]) -> dict[str, tuple[Part, ...]]:
    """The parts of each weight by the names that this checkpoint has for them."""
    others = {n: parts for n, parts in model.alternatives.items() if parts[0].tensor in found}
    return {**model.sources, **others}


def _places(sources: dict[str, tuple[Part, ...]], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """For each checkpoint tensor the rows of the weight that it fills."""
    places = {}
    for name, parts in sources.items():
        if len(parts) == 1:
            places[parts[0].tensor] = weights[name]
            continue
        rows, begin = _as_rows(weights[name]), 0
        for part in parts:
            places[part.tensor] = rows.narrow(0, begin, part.num_rows)
            begin += part.num_rows
    return places


def _as_rows(weight: Tensor) -> Tensor:
    """The same memory; the matrices of a weight of three dimensions, one below the other."""
    return weight.flatten(0, 1) if weight.dim() == 3 else weight


def _read(shards: dict[Path, list[str]], wanted: set[str]) -> Iterator[tuple[str, Tensor]]:
    for path, names in shards.items():
        try:
            with safe_open(path, framework="pt") as file:
                for name in names:
                    if name in wanted:
                        yield name, file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise StartupError(f"cannot read {path}: {error}") from None
