"""A worker without a model that checks every plan it runs.

Its KV cache remembers, for each slot, which token was stored there after which others, so sharing a
block with the wrong prefix is as visible as reading one that was never written. The token
that it samples depends on the whole sequence before it and on the seed, and on nothing else.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from common.messages import (
    Chunk,
    NewSequence,
    SampledToken,
    SamplingParams,
    SequenceFault,
    StepPlan,
    StepRejected,
    StepResult,
    StepTiming,
    WorkerJoin,
)
from common.token_ids import unpack_ids

VOCAB_SIZE = 97
EOS = 0
_MASK = (1 << 61) - 1


def mix(state: int, token_id: int) -> int:
    """What a KV slot holds after `token_id`, when the one before it holds `state`."""
    return (state * 6364136223846793005 + token_id + 1442695040888963407) & _MASK


def next_token(state: int, sampling: SamplingParams, num_output_tokens: int) -> int:
    """The token that follows; about one in VOCAB_SIZE ends a sequence that may end."""
    token_id = mix(state, sampling.seed) % VOCAB_SIZE
    masked = token_id in sampling.stop_token_ids and num_output_tokens < sampling.min_tokens
    return token_id + 1 if masked or (token_id == EOS and sampling.ignore_eos) else token_id


def completion(prompt: list[int], sampling: SamplingParams, length_limit: int) -> list[int]:
    """All output tokens of an undisturbed request."""
    state = 0
    for token_id in prompt:
        state = mix(state, token_id)
    output: list[int] = []
    max_tokens = sampling.max_tokens or length_limit
    while len(output) < max_tokens and len(prompt) + len(output) < length_limit:
        token_id = next_token(state, sampling, len(output))
        output.append(token_id)
        if token_id in sampling.stop_token_ids and len(output) > sampling.min_tokens:
            break
        state = mix(state, token_id)
    return output


@dataclass
class _Sequence:
    sampling: SamplingParams
    num_prompt_tokens: int
    num_computed_tokens: int
    block_ids: list[int]
    states: list[int]  # state after each known token


@dataclass
class CheckingWorker:
    """Plans are queued by `send` and run one at a time by `run`."""

    num_blocks: int = 24
    block_size: int = 4
    max_model_len: int = 64
    max_num_seqs: int = 8
    device: str = "cpu"
    #: milliseconds that a pass takes, and what the worker says of it when it joins
    pass_ms: Callable[[StepPlan], float] = lambda _: 1e-6
    calibration: tuple[StepTiming, ...] = ()
    blocks_per_group: int = 1
    plans: deque[StepPlan] = field(default_factory=deque)
    steps: list[StepPlan] = field(default_factory=list)  # that were run
    _kv: dict[int, int] = field(default_factory=dict)
    _sequences: dict[int, _Sequence] = field(default_factory=dict)
    _last_step_id: int = 0
    _doubtful: set[int] = field(default_factory=set)  # steps planned on top of a rejected one

    @property
    def join(self) -> WorkerJoin:
        return WorkerJoin(
            model="fake",
            device=self.device,
            backend="reference",
            dtype="float32",
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            max_model_len=self.max_model_len,
            vocab_size=VOCAB_SIZE,
            max_num_seqs=self.max_num_seqs,
            calibration=self.calibration,
            blocks_per_group=self.blocks_per_group,
        )

    @property
    def length_limit(self) -> int:
        return min(self.max_model_len, self.num_blocks * self.block_size)

    @property
    def num_sequences(self) -> int:
        return len(self._sequences)

    def send(self, plan: StepPlan) -> None:
        assert len(self.plans) < 2, "more than two steps in flight"
        self.plans.append(plan)

    def reject(self) -> StepRejected:
        """Refuse the oldest plan, naming nobody."""
        plan = self.plans.popleft()
        self._drop(plan)
        self._doubtful.update(later.step_id for later in self.plans)
        return StepRejected(plan.step_id, "told to")

    def lose_plan(self) -> None:
        """Forget the oldest plan and never answer it: a worker in the wrong."""
        self._drop(self.plans.popleft())
        self._doubtful.update(later.step_id for later in self.plans)

    def run(self, faulty: bool = False) -> StepResult | StepRejected:
        """Run the oldest plan; `faulty` makes its first sample a fault."""
        plan = self.plans.popleft()
        assert plan.step_id > self._last_step_id
        assert plan.chunks or plan.dropped_sequence_ids, "a step for nothing"
        self._last_step_id = plan.step_id
        self._drop(plan)
        if plan.step_id in self._doubtful and not self._resolves(plan):
            return StepRejected(plan.step_id, "it follows a step that did not run")
        if plan.chunks:
            self.steps.append(plan)
        for new in plan.new_sequences:
            self._introduce(new)
        assert len(self._sequences) <= self.max_num_seqs
        for chunk in plan.chunks:
            self._store(chunk)
        if plan.step_id not in self._doubtful:
            for chunk in plan.chunks:
                self._attend(chunk)
        sampled = [self._sample(chunk) for chunk in plan.chunks if chunk.sample]
        faults: tuple[SequenceFault, ...] = ()
        if faulty and sampled:
            faults = (SequenceFault(sampled.pop(0).sequence_id, "logits are not finite"),)
        step_ns = round(self.pass_ms(plan) * 1e6)
        return StepResult(plan.step_id, tuple(sampled), step_ns, faults)

    def _drop(self, plan: StepPlan) -> None:
        for sequence_id in plan.dropped_sequence_ids:
            self._sequences.pop(sequence_id, None)

    def _resolves(self, plan: StepPlan) -> bool:
        new = {sequence.sequence_id for sequence in plan.new_sequences}
        for chunk in plan.chunks:
            known = self._sequences.get(chunk.sequence_id)
            if chunk.sequence_id not in new and (
                known is None or known.num_computed_tokens != chunk.num_computed_tokens
            ):
                return False
        return True

    def _introduce(self, new: NewSequence) -> None:
        assert new.sequence_id not in self._sequences
        tokens = list(unpack_ids(new.token_ids))
        blocks = list(unpack_ids(new.block_ids))
        assert 0 < new.num_prompt_tokens <= len(tokens) <= self.max_model_len
        assert new.num_computed_tokens == len(blocks) * self.block_size < len(tokens)
        states, state = [], 0
        for token_id in tokens:
            state = mix(state, token_id)
            states.append(state)
        self._sequences[new.sequence_id] = _Sequence(
            new.sampling, new.num_prompt_tokens, new.num_computed_tokens, blocks, states
        )

    def _store(self, chunk: Chunk) -> None:
        """Write the chunk's KV; whoever shares a block must expect just that in it."""
        sequence = self._sequences[chunk.sequence_id]
        start, end = chunk.num_computed_tokens, chunk.num_computed_tokens + chunk.num_tokens
        assert start == sequence.num_computed_tokens
        assert chunk.num_tokens >= 1
        assert end <= len(sequence.states)
        assert chunk.sample == (end == len(sequence.states))
        sequence.block_ids += unpack_ids(chunk.new_block_ids)
        assert all(0 <= block_id < self.num_blocks for block_id in sequence.block_ids)
        assert len(sequence.block_ids) == -(-end // self.block_size), "too few or too many blocks"
        others = [other for other in self._sequences.values() if other is not sequence]
        for position in range(start, end):
            index, offset = divmod(position, self.block_size)
            block_id, state = sequence.block_ids[index], sequence.states[position]
            for other in others:
                if block_id in other.block_ids:
                    theirs = other.block_ids.index(block_id) * self.block_size + offset
                    assert other.states[theirs] == state, "others hold a block that is written"
            self._kv[block_id * self.block_size + offset] = state
        sequence.num_computed_tokens = end

    def _attend(self, chunk: Chunk) -> None:
        """Every token up to the chunk's end must be in the cache, after the right ones."""
        sequence = self._sequences[chunk.sequence_id]
        for position in range(sequence.num_computed_tokens):
            block_id = sequence.block_ids[position // self.block_size]
            slot = block_id * self.block_size + position % self.block_size
            assert self._kv.get(slot) == sequence.states[position], "the KV of other tokens"

    def _sample(self, chunk: Chunk) -> SampledToken:
        sequence = self._sequences[chunk.sequence_id]
        num_output_tokens = len(sequence.states) - sequence.num_prompt_tokens
        token_id = next_token(sequence.states[-1], sequence.sampling, num_output_tokens)
        sequence.states.append(mix(sequence.states[-1], token_id))
        return SampledToken(chunk.sequence_id, token_id)
