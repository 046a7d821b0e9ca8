"""A worker that computes nothing and takes the time that its passes would take."""

from collections.abc import Callable
from typing import TypeAlias

from common.messages import (
    SampledToken,
    SamplingParams,
    StepPlan,
    StepResult,
    WorkerJoin,
)
from services.scheduler.cost_model import NS_PER_MS, StepShape
from services.scheduler.simulation.host import HostCosts
from services.scheduler.simulation.pass_time import PassTime

MS_PER_S = 1e3

#: the token that follows, from the request's parameters and the number of output tokens before it
Sample: TypeAlias = Callable[[SamplingParams, int], int]


class SimulatedWorker:
    """Runs plans in the order in which they come, one at a time.

    It trusts the plans; that they are sound is what `tests/support/checking_worker.py` is for.

    Args:
        join: what it announces to the scheduler.
        pass_time: of its device.
        sample: chooses tokens.
        host: what its passes lose to the services around it.
    """

    def __init__(
        self, join: WorkerJoin, pass_time: PassTime, sample: Sample, host: HostCosts
    ) -> None:
        self.join = join
        self.busy_s = 0.0  #: of the device, over all passes
        self.num_passes = 0
        self.num_tokens = 0  #: in all passes
        self._pass_time = pass_time
        self._sample = sample
        self._host = host
        self._free_at = 0.0
        self._sequences: dict[int, tuple[SamplingParams, int]] = {}  # and prompt tokens

    def run(self, plan: StepPlan, shape: StepShape, arrives_at: float) -> tuple[float, StepResult]:
        """Take the next plan.

        Args:
            plan: follows the ones before it.
            shape: what its chunks amount to.
            arrives_at: seconds on the simulation's clock.

        Returns:
            When the pass has run, and its result.
        """
        for sequence_id in plan.dropped_sequence_ids:
            self._sequences.pop(sequence_id, None)
        for new in plan.new_sequences:
            self._sequences[new.sequence_id] = (new.sampling, new.num_prompt_tokens)
        start = max(arrives_at, self._free_at)
        if not plan.chunks:
            return start, StepResult(plan.step_id, (), step_ns=0)
        host = self._host
        step_ms = self._pass_time.ms(shape) + host.sampled_token_ms * shape.num_logits
        end = start + step_ms / MS_PER_S
        self._free_at = end + host.pass_ms / MS_PER_S
        self.busy_s += step_ms / MS_PER_S
        self.num_passes += 1
        self.num_tokens += shape.num_tokens
        return end, StepResult(plan.step_id, self._sampled(plan), round(step_ms * NS_PER_MS))

    def _sampled(self, plan: StepPlan) -> tuple[SampledToken, ...]:
        tokens = []
        for chunk in plan.chunks:
            if chunk.sample:
                sampling, num_prompt = self._sequences[chunk.sequence_id]
                num_before = chunk.num_computed_tokens + chunk.num_tokens - num_prompt
                tokens.append(SampledToken(chunk.sequence_id, self._sample(sampling, num_before)))
        return tuple(tokens)
