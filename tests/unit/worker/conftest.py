"""Engines on tiny random models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from transformers import PreTrainedModel

from common.config import WorkerOptions
from services.worker.engine import Engine
from tests.support.tiny_models import make_tiny_llama

OPTIONS = WorkerOptions.model_validate(
    {
        "dtype": "float32",
        "device": "cpu",
        "block_size": 8,
        "kv_cache_memory": "8MiB",
        "cpu_threads": 1,
    }
)

MakePair: TypeAlias = Callable[..., tuple[Engine, PreTrainedModel]]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_pair(tmp_path: Path) -> MakePair:
    """Makes a tiny model from a config: our engine on it, and transformers' own."""

    def make(**config: Any) -> tuple[Engine, PreTrainedModel]:
        model = make_tiny_llama(tmp_path, **config)
        return Engine(tmp_path, OPTIONS), model

    return make


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    directory = tmp_path_factory.mktemp("tiny-llama")
    return directory, make_tiny_llama(directory)


@pytest.fixture
def pair(tiny_llama: tuple[Path, PreTrainedModel]) -> tuple[Engine, PreTrainedModel]:
    """The default tiny model: a fresh engine on it, and transformers' own."""
    directory, model = tiny_llama
    return Engine(directory, OPTIONS), model
