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
import numpy as np
from safetensors.numpy import save_file

from benchmarks.engine.shapes import SHAPES, random_weights
from kernels.host_array import BFLOAT16, HostArray
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


def _tensors(config: ModelConfig) -> dict[str, HostArray]:
    """Random weights, cut into what a checkpoint calls them."""
    model = llama(config)
    tensors: dict[str, HostArray] = {}
    for name, weight in random_weights(model.program, BFLOAT16).items():
        parts = model.sources[name]
        ends = np.cumsum([part.num_rows for part in parts])
        for part, rows in zip(parts, np.split(weight, ends[:-1]), strict=True):
            tensors[part.tensor] = rows
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
