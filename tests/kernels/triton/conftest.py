"""Kernels run on the GPU if there is one, else in Triton's interpreter on tensors of the CPU.

The interpreter is chosen when triton is first imported, so the choice is made here, before any test
imports a kernel.
"""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="triton is not installed: pip install 'splitfuse[gpu]'")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels under test run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _infinities_are_meant() -> Iterator[None]:
    """Kernels let `exp` overflow where 1 / inf is the right answer; numpy would warn."""
    with np.errstate(over="ignore", divide="ignore"):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is also a test of the GPU, when there is one."""
    if torch.cuda.is_available():
        for item in items:
            if "kernels/triton" in str(item.path):
                item.add_marker(pytest.mark.gpu)
