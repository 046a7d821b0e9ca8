"""Next tokens for a batch of sequences with mixed parameters.

Rows are sorted out first: most want the largest logit, or a draw, of logits as they are. Only rows
that ask for biases or penalties are copied and worked on; when nobody asks for anything, a step
costs one pass over the logits. What is computed, and in which order, stands in `kernels.sampling`.

Log-probabilities are those of the model's own logits, before anything is applied to them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.messages import SampledToken, SamplingParams, SequenceFault, TokenLogprob
from kernels.backend import LogitsT, Sampler
from kernels.host_array import HostArray, Int64Array
from kernels.sampling import Biases, Penalties, Randomness
from services.worker.sequence_table import SequenceState

# Below this a temperature is greedy: the draw would be the largest logit anyway.
_GREEDY_BELOW = 1e-5
_NOT_FINITE = "the model's logits are not finite"
_NOTHING_LEFT = "biases, penalties and min_tokens leave no token to choose"


@dataclass(frozen=True, slots=True)
class Sampled:
    """One row's outcome; of a row with a fault, `token_id` only keeps its sequence's place."""

    token_id: int
    logprob: TokenLogprob | None = None
    fault: str | None = None

    def message(self, sequence_id: int) -> SampledToken | SequenceFault:
        """What the scheduler is told."""
        if self.fault is not None:
            return SequenceFault(sequence_id, self.fault)
        return SampledToken(sequence_id, self.token_id, self.logprob)


def sample(
    logits: LogitsT, sequences: Sequence[SequenceState], sampler: Sampler[LogitsT]
) -> list[Sampled]:
    """Choose the next token of each sequence.

    Args:
        logits: float32 `[len(sequences), vocab_size]`, as the backend gave them; not written.
        sequences: all of whose tokens are known; the next one's position is their number.
        sampler: of the backend that made the logits.
    """
    if not sequences:
        return []
    token_ids, faults = _best(logits, sampler, _NOT_FINITE)
    if not faults and all(map(_takes_the_best, sequences)):
        return list(map(Sampled, token_ids.tolist()))
    usable = [row for row in range(len(sequences)) if row not in faults]
    edited = [row for row in usable if _is_edited(sequences[row])]
    if edited:
        token_ids[edited], edit_faults = _sample_edited(logits, sequences, edited, sampler)
        faults |= {edited[row]: fault for row, fault in edit_faults.items()}
    plain = sorted(set(usable) - set(edited))
    _draw(logits, sequences, plain, sampler, token_ids)
    ids = token_ids.tolist()
    logprobs = _logprobs(logits, ids, sequences, faults, sampler)
    return [
        Sampled(0, fault=faults[row]) if row in faults else Sampled(token_id, logprobs.get(row))
        for row, token_id in enumerate(ids)
    ]


def _best(
    logits: LogitsT, sampler: Sampler[LogitsT], fault: str
) -> tuple[Int64Array, dict[int, str]]:
    """The largest logit's id of each row, and the fault of rows where that is not finite.

    A row's maximum is NaN if one logit is, and infinite if one is or all are minus infinity.
    """
    token_ids, largest = sampler.argmax(logits)
    bad = np.flatnonzero(~np.isfinite(largest)).tolist()
    return token_ids, dict.fromkeys(bad, fault)


def _draw(
    logits: LogitsT,
    sequences: Sequence[SequenceState],
    rows: Sequence[int],
    sampler: Sampler[LogitsT],
    token_ids: Int64Array,
) -> None:
    """Of these rows, draw those that are not greedy, into `token_ids`."""
    drawn = [row for row in rows if not _is_greedy(sequences[row].sampling)]
    if drawn:
        randomness = _randomness([sequences[row] for row in drawn], logits.shape[1])
        token_ids[drawn] = sampler.sample(logits, np.array(drawn, np.int64), randomness)


def _takes_the_best(sequence: SequenceState) -> bool:
    """Whether the largest logit is all that it asks for."""
    params = sequence.sampling
    return _is_greedy(params) and params.logprobs is None and not _is_edited(sequence)


def _is_greedy(params: SamplingParams) -> bool:
    return params.temperature < _GREEDY_BELOW


def _is_edited(sequence: SequenceState) -> bool:
    """Whether its logits are not taken as they are."""
    params = sequence.sampling
    return bool(params.logit_bias) or _has_penalties(params) or _is_stop_masked(sequence)


def _has_penalties(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
    )


def _is_stop_masked(sequence: SequenceState) -> bool:
    """Whether too few tokens are out for a stop token to be allowed."""
    num_output_tokens = len(sequence.token_ids) - sequence.num_prompt_tokens
    return num_output_tokens < sequence.sampling.min_tokens and bool(
        sequence.sampling.stop_token_ids
    )


def _sample_edited(
    logits: LogitsT,
    sequences: Sequence[SequenceState],
    rows: Sequence[int],
    sampler: Sampler[LogitsT],
) -> tuple[Int64Array, dict[int, str]]:
    """Token ids `[len(rows)]`, and faults by place in `rows`."""
    asking = [sequences[row] for row in rows]
    biases = _biases(asking, vocab_size=logits.shape[1])
    edited = sampler.edit(logits, np.array(rows, np.int64), biases, _penalties(asking))
    token_ids, faults = _best(edited, sampler, _NOTHING_LEFT)
    usable = [row for row in range(len(rows)) if row not in faults]
    _draw(edited, asking, usable, sampler, token_ids)
    return token_ids, faults


def _biases(sequences: Sequence[SequenceState], vocab_size: int) -> Biases[HostArray] | None:
    entries = [
        (row, token_id, bias)
        for row, sequence in enumerate(sequences)
        for token_id, bias in sequence.sampling.logit_bias
    ] + [
        (row, token_id, float("-inf"))
        for row, sequence in enumerate(sequences)
        if _is_stop_masked(sequence)
        for token_id in sequence.sampling.stop_token_ids
    ]
    entries = [entry for entry in entries if 0 <= entry[1] < vocab_size]
    if not entries:
        return None
    rows, token_ids, values = zip(*entries, strict=True)
    return Biases(
        np.array(rows, np.int64), np.array(token_ids, np.int64), np.array(values, np.float32)
    )


def _penalties(sequences: Sequence[SequenceState]) -> Penalties[HostArray] | None:
    parts = [
        (row, *_penalties_of(sequence))
        for row, sequence in enumerate(sequences)
        if _has_penalties(sequence.sampling)
    ]
    if not parts:
        return None
    rows = np.concatenate([np.full(len(ids), row) for row, ids, _, _ in parts])
    columns = [np.concatenate([part[i] for part in parts]) for i in (1, 2, 3)]
    return Penalties(rows, *columns)


def _penalties_of(sequence: SequenceState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids that occur (int64), and for each its repetition penalty and what is subtracted."""
    params, tokens = sequence.sampling, sequence.token_ids.view
    ids, index = np.unique(tokens, return_inverse=True)
    counts = np.bincount(index[sequence.num_prompt_tokens :], minlength=len(ids))
    subtract = params.presence_penalty * (counts > 0) + params.frequency_penalty * counts
    repetition = np.full(len(ids), params.repetition_penalty, np.float32)
    return ids.astype(np.int64), repetition, subtract.astype(np.float32)


def _randomness(sequences: Sequence[SequenceState], vocab_size: int) -> Randomness[HostArray]:
    params = [sequence.sampling for sequence in sequences]
    top_k = [min(p.top_k, vocab_size) if p.top_k > 0 else vocab_size for p in params]
    return Randomness(
        temperature=np.array([p.temperature for p in params], np.float32),
        top_k=np.array(top_k, np.int64),
        top_p=np.array([p.top_p for p in params], np.float64),
        min_p=np.array([p.min_p for p in params], np.float32),
        seeds=np.array([p.seed for p in params], np.uint64).view(np.int64),
        positions=np.array([len(s.token_ids) for s in sequences], np.int64),
    )


def _logprobs(
    logits: LogitsT,
    token_ids: list[int],
    sequences: Sequence[SequenceState],
    faults: Mapping[int, str],
    sampler: Sampler[LogitsT],
) -> dict[int, TokenLogprob]:
    """By row, for those that ask."""
    asked = {
        row: sequence.sampling.logprobs
        for row, sequence in enumerate(sequences)
        if sequence.sampling.logprobs is not None and row not in faults
    }
    if not asked:
        return {}
    rows = np.array(list(asked), np.int64)
    count = min(max(asked.values()), logits.shape[1])
    found = sampler.logprobs(logits, rows, np.array(token_ids, np.int64)[rows], count)
    own, ids, values = found.own.tolist(), found.top_ids.tolist(), found.top.tolist()
    return {
        row: TokenLogprob(
            token_ids[row], own[i], tuple(zip(ids[i][:wanted], values[i][:wanted], strict=True))
        )
        for i, (row, wanted) in enumerate(asked.items())
    }
