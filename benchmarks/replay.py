"""Does a record reproduce? Records a simulated load decision by decision, and decides it all again.

    python -m benchmarks.replay [--decisions 1000000] [--seed 0] [--file FILE]

Three workers of different speed and short memory under 24 clients, two of whom are impatient; every
minute a worker is lost and another joins, so that requests are preempted, moved, cancelled and
recomputed. Prints what recording and replaying cost. A quarter of a million decisions take about 80
seconds and a file of 96 MB, which is removed unless it was asked for.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import BinaryIO

import msgspec

from common.workload.arrivals import ClosedLoop
from common.workload.lengths import Lengths
from common.workload.load import draw_load
from services.scheduler import checkpoint, record
from services.scheduler.core import CoreOptions, SchedulerCore
from services.scheduler.events import Event, Instruction
from services.scheduler.policies import make_policy
from services.scheduler.record_file import made_by, read_record
from services.scheduler.replay.report import reproduction_lines
from services.scheduler.replay.reproduction import reproduce
from services.scheduler.simulation.clients import Clients
from services.scheduler.simulation.devices import timings_of
from services.scheduler.simulation.host import HostCosts
from services.scheduler.simulation.pass_time import CurvePassTime
from services.scheduler.simulation.requests import Requests
from services.scheduler.simulation.scenario import Machine, make_worker

CURVE = ((64, 12.0), (512, 35.0), (1024, 60.0), (2048, 115.0))  # about an 8B model on one GPU
SPEEDS = (1.0, 1.3, 2.0)  # of the workers' passes, in times of the curve
NUM_CLIENTS = 24
LOSS_PERIOD_S = 60.0
STATE_PERIOD = 50_000  # decisions between copies of the state, which replay compares, too
PATIENCE_S = 6.0  # at most, of clients that go away
CANCEL_SHARE = 0.08


class _Enough(Exception):
    """As many decisions are recorded as were asked for."""


class Writer:
    """Writes decisions to a file as they are taken."""

    def __init__(self, file: BinaryIO, core: SchedulerCore, num_decisions: int) -> None:
        self.note_s = 0.0  #: spent on encoding and writing decisions
        self.state_s = 0.0  #: spent on copies of the state
        self.num_states = 0
        self._file = file
        self._core = core
        self._num_left = num_decisions
        file.write(record.encode(record.Header(record.FORMAT, made_by(), "benchmark", "test", "")))
        self._save_state(0.0)

    def observe(self, event: Event, instructions: list[Instruction], now: float) -> None:
        """Take a decision down."""
        began = time.perf_counter()
        encoded = msgspec.Raw(record.encode_instructions(instructions))
        self._file.write(record.encode(record.Decided(now, event, encoded)))
        self.note_s += time.perf_counter() - began
        self._num_left -= 1
        if self._num_left % STATE_PERIOD == 0:
            self._save_state(now)
        if not self._num_left:
            raise _Enough

    def _save_state(self, now: float) -> None:
        began = time.perf_counter()
        state = checkpoint.save(self._core)
        self._file.write(record.encode(record.StateSaved(now, state)))
        self.state_s += time.perf_counter() - began
        self.num_states += 1


def main() -> None:
    """Record, replay, compare."""
    parser = argparse.ArgumentParser(description="does a record reproduce, bit for bit?")
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="of the load and its troubles")
    parser.add_argument("--file", type=Path, help="where to keep the record")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = arguments.file or Path(directory) / "benchmark.record"
        _record(path, arguments.decisions, arguments.seed)
        _replay(path)


def _record(path: Path, num_decisions: int, seed: int) -> None:
    core = SchedulerCore(
        CoreOptions(
            policy=make_policy("splitfuse"),
            token_budget=None,
            max_num_seqs=64,
            max_queued_tokens=None,
            caching=True,
            target_tbt_ms=60.0,
        )
    )
    began = time.perf_counter()
    with path.open("wb") as file:
        writer = Writer(file, core, num_decisions)
        with suppress(_Enough):
            _clients(core, num_decisions, seed, writer.observe).simulator.run()
    wall_s = time.perf_counter() - began
    stats = core.stats
    print(
        f"recorded {num_decisions:,} decisions in {wall_s:.1f} s, "
        f"{path.stat().st_size / 1e6:,.0f} MB: {1e6 * writer.note_s / num_decisions:.1f} us each "
        f"beside what the scheduler needs, and {1e3 * writer.state_s / writer.num_states:.1f} ms "
        f"for each of {writer.num_states} copies of its state"
    )
    print(
        f"in it: {stats.num_steps:,} steps, {stats.num_length + stats.num_stopped:,} requests "
        f"finished, {stats.num_cancelled:,} cancelled, {stats.num_preemptions:,} preempted, "
        f"{stats.num_lost_workers} workers lost"
    )


def _clients(
    core: SchedulerCore,
    num_decisions: int,
    seed: int,
    observe: Callable[[Event, list[Instruction], float], None],
) -> Clients:
    draw = random.Random(seed)
    # A request takes more than ten decisions, so that the load outlasts the record.
    lengths = Lengths(300, 80, distribution="uniform", spread=1.0)
    load = draw_load(lengths, ClosedLoop(NUM_CLIENTS), num_decisions // 10, draw)
    requests = Requests(vocab_size=32_000, max_tokens=512)

    def patience_s(_: int) -> float | None:
        return draw.uniform(0, PATIENCE_S) if draw.random() < CANCEL_SHARE else None

    clients = Clients(
        core, load, requests, HostCosts(), lambda _: None, patience_s=patience_s, observe=observe
    )
    _attach_and_lose(clients, requests, seed)
    return clients


def _attach_and_lose(clients: Clients, requests: Requests, seed: int) -> None:
    """Three workers; once per period the oldest goes and a new one comes."""
    simulator, numbers = clients.simulator, count()

    def attach() -> None:
        number = next(numbers)
        machine = _machine(SPEEDS[number % len(SPEEDS)])
        simulator.attach(f"worker-{number}", make_worker(machine, requests, f"{seed} {number}"))

    def trade(period: int) -> None:
        simulator.lose(f"worker-{period}")
        attach()
        simulator.at(simulator.now + LOSS_PERIOD_S, partial(trade, period + 1))

    for _ in SPEEDS:
        simulator.at(0.0, attach)
    simulator.at(LOSS_PERIOD_S, partial(trade, 0))


def _machine(speed: float) -> Machine:
    curve = CurvePassTime(CURVE, scale=speed, ms_per_context_token=0.0002)
    return Machine(
        pass_time=curve,
        host=HostCosts(),
        num_blocks=120,  # of 16 tokens: five requests of mean length
        block_size=16,
        max_model_len=4096,
        calibration=timings_of(curve),
        noise=0.05,
    )


def _replay(path: Path) -> None:
    entries = read_record(path)
    next(entries)  # the header
    began = time.perf_counter()
    result = reproduce(entries)
    print(*reproduction_lines(result, time.perf_counter() - began), sep="\n")
    if result.divergence is not None:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
