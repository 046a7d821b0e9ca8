"""Score every word of the vocabulary for each sampled row.

    x       [num_rows, width]
    weight  [vocab_size, width]
    out     [num_rows, vocab_size] float32 = x · weightᵀ, or soft_cap * tanh(x · weightᵀ / soft_cap)

The product is rounded to the model's dtype before it becomes float32, as model code does; the
soft cap is applied in float32.
"""

import torch
from torch import Tensor

from kernels.linear import PackedWeight, linear_packed, linear_reference


def logits_reference(x: Tensor, weight: Tensor, soft_cap: float | None = None) -> Tensor:
    """See the module docstring."""
    return _cap(linear_reference(x, weight), soft_cap)


def logits_packed(
    x: Tensor, weight: PackedWeight | Tensor, soft_cap: float | None = None
) -> Tensor:
    """`logits_reference` over what `kernels.linear.pack_weight` returned."""
    return _cap(linear_packed(x, weight), soft_cap)


def _cap(logits: Tensor, soft_cap: float | None) -> Tensor:
    logits = logits.float()
    return logits if soft_cap is None else torch.tanh(logits / soft_cap) * soft_cap
