"""The backend's door to `kernels.triton.sampling`."""

import torch
from torch import Tensor

from kernels.reference_sampler import ReferenceSampler
from kernels.sampling import Randomness
from kernels.triton.sampling import argmax, sample


class TritonSampler(ReferenceSampler):
    """A `kernels.backend.Sampler`: one launch to choose, and one to draw."""

    def _argmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return argmax(logits)

    def _sample(self, logits: Tensor, rows: Tensor, randomness: Randomness[Tensor]) -> Tensor:
        out = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
        sample(logits, randomness, out, rows=rows)
        return out
