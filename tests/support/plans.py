"""Plays the scheduler for an engine: makes plans by hand, keeps the books that a plan needs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from common.messages import (
    Chunk,
    NewSequence,
    SampledToken,
    SamplingParams,
    StepPlan,
    StepResult,
)
from common.token_ids import pack_ids
from services.worker.engine import Engine

GREEDY = SamplingParams(temperature=0.0)


@dataclass
class PlannedSequence:
    """A sequence as the scheduler would know it."""

    sequence_id: int
    prompt: Sequence[int]
    block_ids: list[int]
    sampling: SamplingParams = GREEDY
    num_computed_tokens: int = 0
    #: prompt and sampled tokens, those in flight included
    num_tokens: int = 0
    output: list[int] = field(default_factory=list)
    announced: bool = False

    def __post_init__(self) -> None:
        self.num_tokens = self.num_tokens or len(self.prompt)


class Planner:
    """Makes the plans of a test; `step` runs one, with any mix of chunks."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._next_step = 1
        self._next_id = 10

    def sequence(
        self, prompt: Sequence[int], block_ids: Sequence[int], sampling: SamplingParams = GREEDY
    ) -> PlannedSequence:
        self._next_id += 1
        return PlannedSequence(self._next_id, prompt, list(block_ids), sampling)

    def plan(self, *work: tuple[PlannedSequence, int]) -> StepPlan:
        """The next plan: so many tokens of each sequence."""
        new, chunks = [], []
        for sequence, num_tokens in work:
            if not sequence.announced:
                new.append(announce(sequence))
                sequence.announced = True
            computed = sequence.num_computed_tokens
            sequence.num_computed_tokens += num_tokens
            sample = sequence.num_computed_tokens == sequence.num_tokens
            sequence.num_tokens += sample
            chunks.append(Chunk(sequence.sequence_id, computed, num_tokens, b"", sample))
        self._next_step += 1
        return StepPlan(self._next_step, tuple(chunks), tuple(new))

    def run(self, plan: StepPlan, *sequences: PlannedSequence) -> tuple[SampledToken, ...]:
        """Run a plan that must be accepted, and note what it sampled."""
        result = self.engine.step(plan)
        assert isinstance(result, StepResult), result
        assert not result.faults
        outputs = {sequence.sequence_id: sequence.output for sequence in sequences}
        for token in result.sampled:
            outputs[token.sequence_id].append(token.token_id)
        return result.sampled

    def step(self, *work: tuple[PlannedSequence, int]) -> tuple[SampledToken, ...]:
        return self.run(self.plan(*work), *(sequence for sequence, _ in work))

    def prefill(self, sequence: PlannedSequence, chunk: int) -> None:
        """Run the rest of a prompt in chunks of at most so many tokens."""
        while (left := len(sequence.prompt) - sequence.num_computed_tokens) > 0:
            self.step((sequence, min(chunk, left)))


def announce(sequence: PlannedSequence) -> NewSequence:
    return NewSequence(
        sequence.sequence_id,
        pack_ids(sequence.prompt),
        len(sequence.prompt),
        sequence.num_computed_tokens,
        pack_ids(sequence.block_ids),
        sequence.sampling,
    )
