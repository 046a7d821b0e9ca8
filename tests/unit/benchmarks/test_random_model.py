"""A directory with random weights is a model like any other."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.engine.shapes import SHAPES
from benchmarks.random_model import COPIED, write_model
from kernels.host_array import BFLOAT16
from services.worker.models.config import read_config
from services.worker.models.llama import llama
from services.worker.weights import Weights

SHAPE = msgspec.structs.replace(
    SHAPES["llama-1b"], num_hidden_layers=2, vocab_size=100, hidden_size=128, intermediate_size=40
)


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    source, directory = tmp_path / "source", tmp_path / "model"
    source.mkdir()
    for name in COPIED:
        (source / name).write_text("{}")

    write_model(directory, SHAPE, source)

    config = read_config(directory)
    assert config.num_kv_heads == SHAPE.num_kv_heads
    weights = Weights(directory, llama(config), BFLOAT16)
    assert weights["embed"].shape == (100, 128)
    assert 0.9 < np.std(weights["layers.1.down"].astype(np.float32)) * 40**0.5 < 1.1
    assert {name for name in COPIED if (directory / name).exists()} == set(COPIED)
    with pytest.raises(FileExistsError, match=r"config\.json"):
        write_model(directory, SHAPE, source)
