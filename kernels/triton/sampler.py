"""The backend's door to `kernels.triton.sampling`."""

import torch
from torch import Tensor

from kernels.sampling import Randomness
from kernels.triton.sampling import argmax, sample


class TritonSampler:
    """A `kernels.backend.Sampler`: one launch per call, nothing waits for the host."""

    def argmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return argmax(logits)

    def sample(self, logits: Tensor, rows: Tensor, randomness: Randomness) -> Tensor:
        out = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
        sample(logits, randomness, out, rows=rows)
        return out
