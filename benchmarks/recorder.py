"""What always recording costs the scheduler: each decision, and each copy of the core's state.

    python -m benchmarks.recorder [--steps 2000]

Decisions: sequences that decode with two steps in flight; the median of the time to record a step,
beside the time to decide it. Copies: 256 running and 1,000 waiting requests with prompts of 1,000
tokens, on a worker with 131,584 KV blocks.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.scheduler_core import VOCAB_SIZE, Load, Mesh
from common.messages import GenerateRequest, SamplingParams
from common.token_ids import pack_ids
from services.scheduler import checkpoint
from services.scheduler.core import SchedulerCore
from services.scheduler.events import Event, RequestArrived, SendStep
from services.scheduler.recorder import Recorder, RingLimits

LIMITS = RingLimits(max_bytes=64 * 1024**2, max_seconds=300.0)  # the defaults
REQUEST_ID = "chatcmpl-3f2504e04f8911d39a0c0305e82c3301"  # as long as the gateway's
REPEATS = 9


@dataclass(frozen=True)
class LongPrompts(Load):
    """Prompts of 1,000 tokens, each with a beginning of its own."""

    def request(self, index: int) -> RequestArrived:
        """The index-th request."""
        prompt = pack_ids((index * 7919 + i) % VOCAB_SIZE for i in range(1000))
        sampling = SamplingParams(max_tokens=4096, stop_token_ids=(2,))
        message = GenerateRequest(f"{REQUEST_ID}-{index}", prompt, sampling)
        return RequestArrived("tokenizer", message)


class RecordedMesh(Mesh):
    """Records each decision as the scheduler's shell does, and takes the time that it takes."""

    def __init__(self, load: Load) -> None:
        self.recorder: Recorder | None = None
        self.decide_us: list[float] = []
        self.note_us: list[float] = []
        super().__init__(load)

    def _handle(self, event: Event) -> None:
        if self.recorder is None:
            self.recorder = Recorder(self.core, LIMITS, self._now)
        began = time.perf_counter()
        instructions = self.core.handle(event, self._now)
        decided = time.perf_counter()
        self.recorder.note(event, self._now, instructions)
        noted = time.perf_counter()
        self.decide_us.append(1e6 * (decided - began))
        self.note_us.append(1e6 * (noted - decided))
        self._sent += [i for i in instructions if isinstance(i, SendStep)]


def main() -> None:
    """Print both costs."""
    parser = argparse.ArgumentParser(description="what always recording costs the scheduler")
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    for num_running in (1, 32, 256):
        _print_decisions(num_running, arguments.steps)
    _print_copies(_crowded_core())


def _print_decisions(num_running: int, num_steps: int) -> None:
    mesh = RecordedMesh(LongPrompts(num_running=num_running, num_waiting=100))
    mesh.decide_us.clear()
    mesh.note_us.clear()
    for _ in range(num_steps):
        mesh.finish_step()
    assert mesh.recorder is not None
    assert mesh.recorder.problem is None
    print(
        f"{num_running:4d} sequences: {statistics.median(mesh.note_us):5.1f} us to record a step, "
        f"{statistics.median(mesh.decide_us):5.1f} us to decide it; "
        f"with copies of the state, mean {statistics.fmean(mesh.note_us):5.1f} us"
    )


def _crowded_core() -> SchedulerCore:
    load = LongPrompts(num_running=256, num_waiting=0)
    core = Mesh(load).core
    for index in range(1000):
        core.handle(load.request(load.num_running + index), 1e3)
    return core


def _print_copies(core: SchedulerCore) -> None:
    state = checkpoint.save(core)
    print(
        f"{core.stats.num_running} running, {core.stats.num_waiting} waiting: "
        f"a copy of {len(state) / 1e6:.1f} MB takes {_median_ms(lambda: checkpoint.save(core))}, "
        f"loading it {_median_ms(lambda: checkpoint.load(state))}"
    )


def _median_ms(action: Callable[[], object]) -> str:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        action()
        times.append(1e3 * (time.perf_counter() - began))
    return f"{statistics.median(times):.0f} ms ({min(times):.0f} to {max(times):.0f})"


if __name__ == "__main__":
    main()
