"""A gated MLP that each row takes from a few of many experts: route, multiply by group, combine.

    x         [num_rows, width]
    router    [num_experts, width], same dtype
    gate_up   [num_experts, 2 * inner, width]: gate above up
    down      [num_experts, width, inner]
    residual  [num_rows, width]
    out       [num_rows, width] = sum over the top_k experts e of share_e * y_e, + residual
              y_e = down_e · (activation(gate_e · x) * (up_e · x))

    share     softmax of router · x over all experts, of which the top_k largest stay (the lower
              number of equals) and are divided by their sum

Softmax, shares and the sum over experts are float32, rounded once to the dtype, and once more after
the residual. Products are as `kernels.linear` and `kernels.gated_activation` say; an implementation
may keep scores and y in float32. Where two experts score nearly the same, rounding decides between
them, so two right implementations can disagree on a row.

Cost: 2 * num_rows * (num_experts + top_k * 3 * inner) * width FLOP; the weights of every expert
that any row chose are read once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.gated_activation import gated_activation_reference
from kernels.program import Activation


def mixture_of_experts_reference(
    x: Tensor,
    router: Tensor,
    gate_up: Tensor,
    down: Tensor,
    top_k: int,
    activation: Activation,
    residual: Tensor | None = None,
) -> Tensor:
    """See the module docstring."""
    shares, experts = route(x, router, top_k)
    order = experts.flatten().argsort(stable=True)  # choices, those of one expert together
    counts = experts.flatten().bincount(minlength=len(router)).tolist()
    chosen = torch.split(x[order // top_k], counts)
    grouped = [
        F.linear(gated_activation_reference(F.linear(rows, gate_up[e]), activation), down[e])
        for e, rows in enumerate(chosen)
    ]
    outputs = torch.empty(len(order), x.shape[1], dtype=x.dtype, device=x.device)
    outputs[order] = torch.cat(grouped)
    choices = outputs.view(len(x), top_k, x.shape[1]).float()
    y = (choices * shares[:, :, None]).sum(1).to(x.dtype)
    return y if residual is None else y.add_(residual)


def route(x: Tensor, router: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Shares, float32 `[num_rows, top_k]`, and numbers, int64 of the same shape, of experts."""
    likelihoods = F.linear(x, router).float().softmax(-1)
    ordered, experts = likelihoods.sort(dim=-1, descending=True, stable=True)
    kept = ordered[:, :top_k]
    return kept / kept.sum(-1, keepdim=True), experts[:, :top_k]
