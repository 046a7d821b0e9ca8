"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

# A serving process and its tests share two cores: torch must not start a thread per core for each.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # spinning costs more than waking on shared cores
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a small tokenizer (see `tests.support.model_dirs`)."""
    from tests.support.model_dirs import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The built-in default model, fetched into the user's cache on first use."""
    from splitfuse.models import resolve_model

    return resolve_model(None, print)
