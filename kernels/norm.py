"""Normalise each row, after adding it to the residual stream if there is one.

    x, residual   [num_rows, width]
    weight, bias  [width]
    rms           y = x / sqrt(mean(x^2) + eps) * weight
    layer         y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias

With a residual: residual += x in place, rounded to its dtype; then the sum is what is normalised.
Means are taken in float32 whatever the dtype; the result is rounded once, to the dtype of x.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def norm_reference(
    kind: Literal["rms", "layer"],
    x: Tensor,
    weight: Tensor,
    eps: float,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """See the module docstring."""
    if residual is not None:
        x = residual.add_(x)
    if kind == "layer":
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    y = F.rms_norm(x, weight.shape, weight, eps)
    return y if bias is None else y + bias
