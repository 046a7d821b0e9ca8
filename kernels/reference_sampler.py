"""`kernels.sampling` in plain torch, on any device: what it means, and what runs everywhere."""

from collections.abc import Callable
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import Logprobs
from kernels.host_array import Float32Array, HostArray, Int64Array
from kernels.philox import IDS_PER_CALL, exponentials
from kernels.sampling import Biases, Penalties, Randomness

# Top-p sorts only so many of the likeliest ids first; only rows whose sum stays below top_p within
# them are sorted whole. It changes the time, never the result.
_LIKELIEST = 1024
# Rows drawn at once: bounds the copies of the logits to rows * vocab_size * 4 bytes each.
_ROWS_AT_ONCE = 32


class ReferenceSampler:
    """A `kernels.backend.Sampler` of torch's own logits.

    A kind for one device overrides `_argmax` and `_sample`, which see tensors only.
    """

    @torch.inference_mode()
    def argmax(self, logits: Tensor) -> tuple[Int64Array, Float32Array]:
        token_ids, largest = self._argmax(logits)
        return token_ids.cpu().numpy(), largest.cpu().numpy()

    @torch.inference_mode()
    def sample(
        self, logits: Tensor, rows: Int64Array, randomness: Randomness[HostArray]
    ) -> Int64Array:
        to_device = _mover(logits)
        drawn: Int64Array = (
            self._sample(logits, to_device(rows), randomness.map(to_device)).cpu().numpy()
        )
        return drawn

    @torch.inference_mode()
    def edit(
        self,
        logits: Tensor,
        rows: Int64Array,
        biases: Biases[HostArray] | None,
        penalties: Penalties[HostArray] | None,
    ) -> Tensor:
        to_device = _mover(logits)
        edited = logits.index_select(0, to_device(rows))
        if biases is not None:
            add_biases_reference(edited, biases.map(to_device))
        if penalties is not None:
            add_penalties_reference(edited, penalties.map(to_device))
        return edited

    @torch.inference_mode()
    def logprobs(
        self, logits: Tensor, rows: Int64Array, token_ids: Int64Array, count: int
    ) -> Logprobs:
        to_device = _mover(logits)
        logprobs = torch.log_softmax(logits.index_select(0, to_device(rows)), dim=-1)
        own = logprobs.gather(1, to_device(token_ids)[:, None])[:, 0]
        values, ids = logprobs.topk(count, dim=-1)
        return Logprobs(own.cpu().numpy(), ids.cpu().numpy(), values.cpu().numpy())

    def _argmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        largest, token_ids = logits.max(dim=-1)
        return token_ids, largest

    def _sample(self, logits: Tensor, rows: Tensor, randomness: Randomness[Tensor]) -> Tensor:
        return sample_reference(logits.index_select(0, rows), randomness)


def _mover(logits: Tensor) -> Callable[[HostArray], Tensor]:
    """Takes arrays to the device of the logits."""
    return lambda array: torch.from_numpy(array).to(logits.device)


def add_biases_reference(logits: Tensor, biases: Biases[Tensor]) -> None:
    """Step 1, in place."""
    logits.index_put_((biases.rows, biases.token_ids), biases.values, accumulate=True)


def add_penalties_reference(logits: Tensor, penalties: Penalties[Tensor]) -> None:
    """Step 2, in place."""
    where = (penalties.rows, penalties.token_ids)
    old = logits[where]
    scaled = torch.where(old > 0, old / penalties.repetition, old * penalties.repetition)
    logits.index_put_(where, scaled - penalties.subtract)


def sample_reference(logits: Tensor, randomness: Randomness[Tensor]) -> Tensor:
    """Steps 4 to 8: one id per row, `[num_rows]` int64."""
    drawn = [
        _sample_rows(logits[rows], randomness.map(itemgetter(rows)))
        for begin in range(0, len(logits), _ROWS_AT_ONCE)
        for rows in [slice(begin, begin + _ROWS_AT_ONCE)]
    ]
    return torch.cat(drawn)


def _sample_rows(logits: Tensor, randomness: Randomness[Tensor]) -> Tensor:
    z = logits - logits.amax(dim=-1, keepdim=True)
    z /= randomness.temperature[:, None]
    _mask_min_p(z, randomness.min_p)
    _mask_top_k(z, randomness.top_k)
    p = torch.softmax(z, dim=-1)
    _mask_top_p(p, randomness.top_p)
    return draw_reference(p, randomness.seeds, randomness.positions)


def _mask_min_p(z: Tensor, min_p: Tensor) -> None:
    if bool((min_p > 0).any()):
        z.masked_fill_(z < min_p.log()[:, None], float("-inf"))


def _mask_top_k(z: Tensor, top_k: Tensor) -> None:
    rows = (top_k < z.shape[1]).nonzero().flatten()
    if not len(rows):
        return
    limits = top_k[rows, None]
    largest = z[rows].topk(int(limits.max()), dim=-1).values
    z[rows] = z[rows].masked_fill(z[rows] < largest.gather(1, limits - 1), float("-inf"))


def _mask_top_p(p: Tensor, top_p: Tensor) -> None:
    rows = (top_p < 1).nonzero().flatten()
    count = min(_LIKELIEST, p.shape[1])
    while len(rows):
        likeliest = p[rows].topk(count, dim=-1).values
        before = likeliest.double().cumsum(dim=-1) - likeliest
        kept = (before < top_p[rows, None]).sum(dim=-1, keepdim=True)
        found = (kept[:, 0] < count) | (count == p.shape[1])
        done = rows[found]
        threshold = likeliest.gather(1, kept - 1)[found]
        p[done] = p[done].masked_fill(p[done] < threshold, 0)
        rows, count = rows[~found], p.shape[1]


def draw_reference(p: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """Step 8: `p` is not negative and need not sum to 1.

    Noise is made only for groups of ids of which one is possible.
    """
    padded = F.pad(p, (0, -p.shape[1] % IDS_PER_CALL))
    race = padded.view(len(p), -1, IDS_PER_CALL)  # [num_rows, num_groups, IDS_PER_CALL]
    rows, groups = (race > 0).any(dim=-1).nonzero(as_tuple=True)
    noise = exponentials(seeds[rows], positions[rows], groups)
    scores = torch.zeros_like(race, dtype=torch.float64)
    scores[rows, groups] = race[rows, groups] / noise
    return scores.flatten(1).argmax(dim=-1)
