"""The pointwise functions that `linear` and `gated_activation` share.

Each computes in float32 and rounds once to the dtype of its input. `gelu` is the exact one (erf),
`gelu_tanh` its tanh approximation (`gelu_new`, `gelu_pytorch_tanh` in model configs).
"""

import torch.nn.functional as F
from torch import Tensor

from kernels.program import Activation


def activate(x: Tensor, kind: Activation) -> Tensor:
    """Apply `kind` to every element of `x`."""
    match kind:
        case "relu":
            return F.relu(x)
        case "silu":
            return F.silu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
