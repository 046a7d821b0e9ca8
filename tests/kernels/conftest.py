"""One thread: these tensors are too small for more, and other tests run beside these."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
