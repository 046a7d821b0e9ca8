"""CPU time of the scheduler core per step: plan and result together, no worker, no sockets.

    python -m benchmarks.scheduler_core [--waiting 1000] [--steps 400] [--repeats 7]
        [--tenants 1] [--target-tbt-ms 50] [--prompts]

Sequences decode with two steps in flight, as behind a worker, while others wait for a place. With
--prompts one place is kept for prompts, which come in one after the other and are cut to the
target. Prints the median over repeats and the spread (fastest to slowest repeat).
"""

import argparse
import statistics
import time
from collections import deque
from dataclasses import dataclass

from common.messages import (
    GenerateRequest,
    SampledToken,
    SamplingParams,
    StepResult,
    WorkerJoin,
)
from common.token_ids import pack_ids
from services.scheduler.core import CoreOptions, SchedulerCore
from services.scheduler.cost_model import StepShape, timing_of
from services.scheduler.events import (
    Event,
    RequestArrived,
    SendStep,
    StepFinished,
    WorkerJoined,
)
from services.scheduler.splitfuse import SplitFuse

VOCAB_SIZE = 49_152
PROMPT_TOKENS = 100
LONG_PROMPT_TOKENS = 4000
BLOCK_SIZE = 16
MAX_MODEL_LEN = 8192
WORKER = "worker"


@dataclass(frozen=True)
class Load:
    """What the core has to do with."""

    num_running: int
    num_waiting: int
    num_tenants: int = 1
    target_tbt_ms: float | None = None
    prompts: bool = False

    def request(self, index: int) -> RequestArrived:
        """The index-th request; those beyond the running ones are long if prompts matter."""
        is_prompt = self.prompts and index >= self.num_running
        length = LONG_PROMPT_TOKENS if is_prompt else PROMPT_TOKENS
        prompt = pack_ids((index * 7919 + i) % VOCAB_SIZE for i in range(length))
        max_tokens = 1 if is_prompt else MAX_MODEL_LEN
        sampling = SamplingParams(max_tokens=max_tokens, stop_token_ids=(2,))
        message = GenerateRequest(
            f"request-{index}", prompt, sampling, tenant=f"tenant-{index % self.num_tenants}"
        )
        return RequestArrived(f"tokenizer-{index % 4}", message)


class Mesh:
    """A core, and a worker that takes the time it would take without taking it."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._now = 0.0
        self._sent: deque[SendStep] = deque()
        self._num_requests = 0
        self.core = SchedulerCore(
            CoreOptions(
                policy=SplitFuse(),
                token_budget=None,
                max_num_seqs=load.num_running + load.prompts,
                max_queued_tokens=None,
                caching=True,
                target_tbt_ms=load.target_tbt_ms,
            )
        )
        self._handle(WorkerJoined(WORKER, self._join()))
        self._arrive(load.num_running)
        while len(self._sent[0].plan.chunks) < load.num_running:
            self.finish_step()
        self._arrive(load.num_waiting)

    def finish_step(self) -> int:
        """One step; returns its time in nanoseconds, without what a worker would do."""
        step = self._sent.popleft()
        step_ms = shape_ms(step.shape)
        self._now += step_ms / 1e3
        sampled = [SampledToken(c.sequence_id, 1000) for c in step.plan.chunks if c.sample]
        result = StepResult(step.plan.step_id, tuple(sampled), round(step_ms * 1e6))
        start = time.process_time_ns()
        self._handle(StepFinished(WORKER, result))
        elapsed = time.process_time_ns() - start
        if self.core.stats.num_waiting < self._load.num_waiting:
            self._arrive(1)
        return elapsed

    def _arrive(self, count: int) -> None:
        for _ in range(count):
            self._handle(self._load.request(self._num_requests))
            self._num_requests += 1

    def _handle(self, event: Event) -> None:
        instructions = self.core.handle(event, self._now)
        self._sent += [i for i in instructions if isinstance(i, SendStep)]

    def _join(self) -> WorkerJoin:
        num_blocks = (self._load.num_running + 1) * MAX_MODEL_LEN // BLOCK_SIZE
        sizes = [(n, n * c, n * c, n, n) for n in (1, 8, 64, 256) for c in (64, 1024)]
        sizes += [(n, c + n, n * (c + n), 1, 0) for n in (8, 64, 512, 2048) for c in (0, 1024)]
        shapes = [StepShape(*size) for size in sizes]
        return WorkerJoin(
            model="bench",
            device="cuda:0",
            backend="none",
            dtype="none",
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            max_model_len=MAX_MODEL_LEN,
            vocab_size=VOCAB_SIZE,
            max_num_seqs=1024,
            calibration=tuple(timing_of(shape, shape_ms(shape)) for shape in shapes),
        )


def shape_ms(shape: StepShape) -> float:
    """Of a made-up device: about one GPU with a model of 8 billion parameters."""
    return 6.0 + 0.03 * shape.num_tokens + 1e-5 * shape.num_context_tokens


def measure(load: Load, steps: int, repeats: int) -> list[float]:
    """Microseconds per step, one value per repeat."""
    mesh = Mesh(load)
    for _ in range(20):
        mesh.finish_step()
    return [sum(mesh.finish_step() for _ in range(steps)) / steps / 1000 for _ in range(repeats)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--waiting", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tenants", type=int, default=1)
    parser.add_argument("--target-tbt-ms", type=float)
    parser.add_argument("--prompts", action="store_true")
    options = parser.parse_args()
    print(f"{options.waiting} requests waiting, {options.repeats} x {options.steps} steps")
    for num_running in (1, 32, 256):
        load = Load(
            num_running, options.waiting, options.tenants, options.target_tbt_ms, options.prompts
        )
        times = measure(load, options.steps, options.repeats)
        print(
            f"{num_running:4d} sequences: {statistics.median(times):7.1f} µs per step "
            f"({min(times):.1f} to {max(times):.1f})"
        )


if __name__ == "__main__":
    main()
