"""Engines on tiny random models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from common.config import WorkerOptions
from services.worker.engine import Engine
from tests.support.tiny_models import VOCAB_SIZE, make_tiny_llama

OPTIONS = WorkerOptions.model_validate(
    {
        "dtype": "float32",
        "device": "cpu",
        "block_size": 8,
        "kv_cache_memory": "8MiB",
        "cpu_threads": 1,
        "backend": "reference",
    }
)
BACKENDS = ("reference", "cpu")
POISON = VOCAB_SIZE - 1

MakePair: TypeAlias = Callable[..., tuple[Engine, PreTrainedModel]]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=BACKENDS)
def options(request: pytest.FixtureRequest) -> WorkerOptions:
    """Of every backend that a CPU can run."""
    return OPTIONS.model_copy(update={"backend": request.param})


@pytest.fixture
def make_pair(tmp_path: Path, options: WorkerOptions) -> MakePair:
    """Makes a tiny model from a config: our engine on it, and transformers' own."""

    def make(**config: Any) -> tuple[Engine, PreTrainedModel]:
        model = make_tiny_llama(tmp_path, **config)
        return Engine(tmp_path, options), model

    return make


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    directory = tmp_path_factory.mktemp("tiny-llama")
    return directory, make_tiny_llama(directory)


@pytest.fixture
def pair(
    tiny_llama: tuple[Path, PreTrainedModel], options: WorkerOptions
) -> tuple[Engine, PreTrainedModel]:
    """The default tiny model: a fresh engine on it, and transformers' own."""
    directory, model = tiny_llama
    return Engine(directory, options), model


@pytest.fixture
def poisoned_pair(tmp_path: Path, options: WorkerOptions) -> tuple[Engine, PreTrainedModel]:
    """The same, but whatever a sequence with the token POISON computes from there on is NaN."""
    model = make_tiny_llama(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["model.embed_tokens.weight"][POISON] = torch.nan
    save_file(weights, file, {"format": "pt"})
    return Engine(tmp_path, options), model
