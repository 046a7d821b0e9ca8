"""The worker's memory of the sequences it was told about, and the rules a plan must keep.

Pure: numpy on the host, no tensors, no device. A plan is checked whole before anything changes, so
one that is refused leaves every sequence as it was, except that what it drops is dropped: the
scheduler has forgotten those already, and would not say it again.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from common.messages import Chunk, NewSequence, SamplingParams, StepPlan
from common.token_ids import num_ids
from kernels.ragged_batch import Int32Array


class PlanError(Exception):
    """The plan does not follow from the ones before it.

    Attributes:
        sequence_ids: those that could not be resolved.
    """

    def __init__(self, reason: str, *sequence_ids: int) -> None:
        super().__init__(reason)
        self.sequence_ids = sequence_ids


class IdBuffer:
    """A growing int32 array of token or block ids."""

    __slots__ = ("_data", "_length")

    def __init__(self, packed: bytes) -> None:
        self._length = num_ids(packed)
        self._data: Int32Array = np.empty(max(16, 2 * self._length), np.int32)
        self._data[: self._length] = _unpack(packed)

    def __len__(self) -> int:
        return self._length

    @property
    def view(self) -> Int32Array:
        """What is in it; valid until the next `extend`."""
        return self._data[: self._length]

    def append(self, token_id: int) -> None:
        """Append one id; amortised constant time."""
        self._reserve(1)
        self._data[self._length] = token_id
        self._length += 1

    def extend(self, ids: Int32Array) -> None:
        """Append ids; amortised constant time for each."""
        self._reserve(len(ids))
        self._data[self._length : self._length + len(ids)] = ids
        self._length += len(ids)

    def _reserve(self, num_more: int) -> None:
        length = self._length + num_more
        if length > len(self._data):
            self._data = np.concatenate([self.view, np.empty(length, np.int32)])


@dataclass(slots=True)
class SequenceState:
    """One sequence as the worker knows it."""

    sequence_id: int
    #: prompt, then outputs; grows by one for each step that samples it
    token_ids: IdBuffer
    num_prompt_tokens: int
    #: tokens whose K and V lie in the blocks; <= len(token_ids)
    num_computed_tokens: int
    #: entry i holds tokens [i * block_size, (i + 1) * block_size)
    block_ids: IdBuffer
    sampling: SamplingParams


@dataclass(slots=True)
class SequenceTable:
    """All sequences that were announced and not dropped.

    Mutate only through `apply`, `finish` and `clear`.
    """

    block_size: int
    num_blocks: int
    vocab_size: int
    max_model_len: int
    max_num_seqs: int
    _sequences: dict[int, SequenceState] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._sequences)

    def apply(self, plan: StepPlan) -> list[SequenceState]:
        """Take in what a plan announces.

        Returns:
            The sequence of each chunk, in the order of the chunks. Their `num_computed_tokens` is
            still that of before the step: `finish` moves it on.

        Raises:
            PlanError: the plan cannot be resolved; nothing changed but what it drops.
        """
        for sequence_id in plan.dropped_sequence_ids:
            self._sequences.pop(sequence_id, None)
        announced = {new.sequence_id: self._check_new(new) for new in plan.new_sequences}
        if len(announced) != len(plan.new_sequences):
            raise PlanError("a sequence is announced twice", *announced)
        if len(self._sequences.keys() | announced.keys()) > self.max_num_seqs:
            raise PlanError(
                f"more than the {self.max_num_seqs} sequences that this worker can hold", *announced
            )
        self._check_chunks(plan.chunks, announced)
        self._sequences.update(announced)
        for chunk in plan.chunks:
            if chunk.new_block_ids:
                self._sequences[chunk.sequence_id].block_ids.extend(_unpack(chunk.new_block_ids))
        return [self._sequences[chunk.sequence_id] for chunk in plan.chunks]

    def finish(self, chunks: Sequence[Chunk], sampled: Iterable[int]) -> None:
        """Record that a step ran.

        Args:
            chunks: the plan's.
            sampled: one token id for each chunk with `sample`, in their order.
        """
        next_ids = iter(sampled)
        for chunk in chunks:
            sequence = self._sequences[chunk.sequence_id]
            sequence.num_computed_tokens += chunk.num_tokens
            if chunk.sample:
                sequence.token_ids.append(next(next_ids))

    def clear(self) -> None:
        """Forget everything: the scheduler is gone."""
        self._sequences.clear()

    def _check_new(self, new: NewSequence) -> SequenceState:
        if len(new.token_ids) % 4 or len(new.block_ids) % 4:
            raise PlanError("packed ids are not a multiple of 4 bytes", new.sequence_id)
        token_ids = _unpack(new.token_ids)
        if not 0 < len(token_ids) <= self.max_model_len:
            raise PlanError(
                f"{len(token_ids)} tokens; this worker takes 1 to {self.max_model_len}",
                new.sequence_id,
            )
        if token_ids.min() < 0 or token_ids.max() >= self.vocab_size:
            raise PlanError(
                f"a token id is outside the vocabulary of {self.vocab_size}", new.sequence_id
            )
        if not 0 < new.num_prompt_tokens <= len(token_ids):
            raise PlanError(
                f"{new.num_prompt_tokens} prompt tokens of {len(token_ids)}", new.sequence_id
            )
        room = num_ids(new.block_ids) * self.block_size
        if not 0 <= new.num_computed_tokens <= min(room, len(token_ids)):
            raise PlanError(
                f"{new.num_computed_tokens} tokens computed of {len(token_ids)}, "
                f"with room for {room}",
                new.sequence_id,
            )
        self._check_blocks(new.sequence_id, new.block_ids)
        if (problem := _sampling_problem(new.sampling)) is not None:
            raise PlanError(problem, new.sequence_id)
        return SequenceState(
            new.sequence_id,
            IdBuffer(new.token_ids),
            new.num_prompt_tokens,
            new.num_computed_tokens,
            IdBuffer(new.block_ids),
            new.sampling,
        )

    def _check_chunks(self, chunks: Sequence[Chunk], announced: dict[int, SequenceState]) -> None:
        seen: set[int] = set()
        unknown: list[int] = []
        for chunk in chunks:
            known = announced.get(chunk.sequence_id) or self._sequences.get(chunk.sequence_id)
            if known is None:
                unknown.append(chunk.sequence_id)
            elif chunk.sequence_id in seen:
                raise PlanError("a sequence has two chunks", chunk.sequence_id)
            else:
                self._check_chunk(chunk, known)
            seen.add(chunk.sequence_id)
        if unknown:
            raise PlanError("unknown sequences", *unknown)

    def _check_chunk(self, chunk: Chunk, known: SequenceState) -> None:
        if chunk.num_computed_tokens != known.num_computed_tokens:
            raise PlanError(
                f"the plan says {chunk.num_computed_tokens} tokens are computed, "
                f"this worker computed {known.num_computed_tokens}",
                chunk.sequence_id,
            )
        end, num_tokens = chunk.num_computed_tokens + chunk.num_tokens, len(known.token_ids)
        if chunk.num_tokens < 1 or end > num_tokens or (chunk.sample and end != num_tokens):
            raise PlanError(
                f"a chunk of {chunk.num_tokens} tokens after {chunk.num_computed_tokens}"
                f"{' that samples' if chunk.sample else ''}, of {num_tokens} known",
                chunk.sequence_id,
            )
        if end > self.max_model_len:
            raise PlanError(
                f"{end} tokens; this worker takes {self.max_model_len}", chunk.sequence_id
            )
        if len(chunk.new_block_ids) % 4:
            raise PlanError("packed ids are not a multiple of 4 bytes", chunk.sequence_id)
        num_blocks = len(known.block_ids) + num_ids(chunk.new_block_ids)
        if num_blocks * self.block_size < end:
            raise PlanError(
                f"{num_blocks} blocks of {self.block_size} do not hold {end} tokens",
                chunk.sequence_id,
            )
        self._check_blocks(chunk.sequence_id, chunk.new_block_ids)

    def _check_blocks(self, sequence_id: int, packed: bytes) -> None:
        if not packed:
            return
        block_ids = _unpack(packed)
        if block_ids.min() < 0 or block_ids.max() >= self.num_blocks:
            raise PlanError(f"a block id is outside 0..{self.num_blocks - 1}", sequence_id)


def _sampling_problem(params: SamplingParams) -> str | None:
    """What the sampler could not compute with. Clients hear of it from the gateway, earlier."""
    biases = [bias for _, bias in params.logit_bias]
    penalties = (params.presence_penalty, params.frequency_penalty)
    in_range = {
        "seed": 0 <= params.seed < 2**64,
        "temperature": 0 <= params.temperature < math.inf,
        "top_p": 0 < params.top_p <= 1,
        "top_k": params.top_k >= 0,
        "min_p": 0 <= params.min_p <= 1,
        "repetition_penalty": 0 < params.repetition_penalty < math.inf,
        "presence_penalty or frequency_penalty": all(map(math.isfinite, penalties)),
        "logit_bias": all(map(math.isfinite, biases)),
        "logprobs": params.logprobs is None or params.logprobs >= 0,
    }
    wrong = [name for name, fine in in_range.items() if not fine]
    return f"out of range: {', '.join(wrong)}" if wrong else None


def _unpack(packed: bytes) -> Int32Array:
    """`common.token_ids.unpack_ids` as numpy: a view, read-only, of little-endian int32."""
    return np.frombuffer(packed, dtype="<i4").astype(np.int32, copy=False)
