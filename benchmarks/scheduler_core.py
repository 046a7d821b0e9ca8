"""CPU time of the scheduler core per step: plan and result together, no worker, no sockets.

    python -m benchmarks.scheduler_core [--waiting 1000] [--steps 400] [--repeats 7]

Sequences decode with two steps in flight, as behind a worker, while others wait for a place.
Prints the median over repeats and the spread (fastest to slowest repeat).
"""

import argparse
import statistics
import time

from common.messages import (
    GenerateRequest,
    SampledToken,
    SamplingParams,
    StepPlan,
    StepResult,
    WorkerJoin,
)
from common.token_ids import pack_ids
from services.scheduler.core import CoreOptions, SchedulerCore
from services.scheduler.events import (
    Instruction,
    RequestArrived,
    SendStep,
    StepFinished,
    WorkerJoined,
)
from services.scheduler.splitfuse import SplitFuse

VOCAB_SIZE = 49_152
PROMPT_TOKENS = 100
BLOCK_SIZE = 16
MAX_MODEL_LEN = 8192
WORKER = "worker"


def make_core(num_running: int, num_waiting: int) -> tuple[SchedulerCore, list[StepPlan]]:
    """A core whose worker runs `num_running` sequences and is asked for more."""
    core = SchedulerCore(
        CoreOptions(
            policy=SplitFuse(),
            token_budget=2048,
            max_num_seqs=num_running,
            max_queued_tokens=None,
            caching=True,
        )
    )
    num_blocks = num_running * MAX_MODEL_LEN // BLOCK_SIZE
    join = WorkerJoin(
        "bench", "cuda:0", "none", "none", num_blocks, BLOCK_SIZE, MAX_MODEL_LEN, VOCAB_SIZE, 1024
    )
    plans: list[StepPlan] = []
    collect(core.handle(WorkerJoined(WORKER, join), 0.0), plans)
    for index in range(num_running + num_waiting):
        prompt = pack_ids((index * 7919 + i) % VOCAB_SIZE for i in range(PROMPT_TOKENS))
        sampling = SamplingParams(max_tokens=MAX_MODEL_LEN, stop_token_ids=(2,))
        message = GenerateRequest(f"request-{index}", prompt, sampling)
        collect(core.handle(RequestArrived(f"tokenizer-{index % 4}", message), 0.0), plans)
    while core.stats.num_running < num_running or len(plans[0].chunks) < num_running:
        finish_step(core, plans)
    return core, plans


def collect(instructions: list[Instruction], plans: list[StepPlan]) -> None:
    plans += [i.plan for i in instructions if isinstance(i, SendStep)]


def result_of(plan: StepPlan) -> StepResult:
    sampled = [SampledToken(chunk.sequence_id, 1000) for chunk in plan.chunks if chunk.sample]
    return StepResult(plan.step_id, tuple(sampled), 1)


def finish_step(core: SchedulerCore, plans: list[StepPlan]) -> int:
    """One step; returns its time in nanoseconds, without what a worker would do."""
    event = StepFinished(WORKER, result_of(plans.pop(0)))
    start = time.process_time_ns()
    instructions = core.handle(event, 0.0)
    elapsed = time.process_time_ns() - start
    collect(instructions, plans)
    return elapsed


def measure(num_running: int, num_waiting: int, steps: int, repeats: int) -> list[float]:
    """Microseconds per step, one value per repeat."""
    core, plans = make_core(num_running, num_waiting)
    for _ in range(20):
        finish_step(core, plans)
    return [
        sum(finish_step(core, plans) for _ in range(steps)) / steps / 1000 for _ in range(repeats)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--waiting", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    print(f"{options.waiting} requests waiting, {options.repeats} x {options.steps} steps")
    for num_running in (1, 32, 256):
        times = measure(num_running, options.waiting, options.steps, options.repeats)
        print(
            f"{num_running:4d} sequences: {statistics.median(times):7.1f} µs per step "
            f"({min(times):.1f} to {max(times):.1f})"
        )


if __name__ == "__main__":
    main()
