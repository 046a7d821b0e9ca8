"""A model directory with random weights, to serve a shape that nobody has to download.

    python -m benchmarks.random_model DIRECTORY [--shape llama-1b]

Its tokenizer is that of the default model, so texts come out, though without sense. As large as the
real one: a Llama 1B shape takes 2.2 GB of disk, and as much memory while it is written.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.engine.__main__ import SHAPES
from services.worker.models.config import ModelConfig
from services.worker.models.llama import llama
from splitfuse.models import resolve_model

COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
ROPE_THETA = 10_000.0


def write_model(directory: Path, config: ModelConfig, tokenizer_from: Path) -> None:
    """Write a directory that holds no model yet.

    Args:
        directory: made if it is missing.
        config: of a Llama.
        tokenizer_from: model directory with a vocabulary of the same size.

    Raises:
        FileExistsError: there is a model already.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "config.json").open("x") as file:
        json.dump(_spelled(config), file, indent=2)
    for name in COPIED:
        shutil.copy(tokenizer_from / name, directory)
    save_file(_tensors(config), directory / "model.safetensors", metadata={"format": "pt"})


def _spelled(config: ModelConfig) -> dict[str, object]:
    fields = {
        name: value
        for name, value in msgspec.structs.asdict(config).items()
        if name != "rope" and value is not None
    }
    return fields | {"model_type": "llama", "dtype": "bfloat16", "rope_theta": ROPE_THETA}


def _tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Of a size that keeps activations near 1."""
    model = llama(config)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in model.program.weights.items():
        for part in model.sources[name]:
            values = torch.randn((part.num_rows, *shape[1:]), generator=generator)
            if len(shape) > 1:
                values *= shape[-1] ** -0.5
            tensors[part.tensor] = values.to(torch.bfloat16)
    return tensors


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="llama-1b")
    options = parser.parse_args(argv)
    try:
        write_model(options.directory, SHAPES[options.shape], resolve_model(None, print))
    except FileExistsError as error:
        sys.exit(f"{error.filename} exists")


if __name__ == "__main__":
    main()
