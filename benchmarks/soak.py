"""An hour of the scheduler on a virtual clock: does its memory stay flat?

    python -m benchmarks.soak [--seconds 3600] [--rate 10] [--seed 0]

Three workers with short memory serve more requests than they can keep, lengths mixed from chats to
documents. Some clients go away before they are answered, and every few minutes a worker is lost and
another joins. Prints what is alive at tenths of the time: resident memory, objects of Python, and
what the core holds. Takes about a minute and a half.
"""

import argparse
import gc
import random
import resource
from collections import Counter
from functools import partial

import psutil

from common.workload.arrivals import OpenLoop
from common.workload.load import Load, make_load
from common.workload.timeline import RequestShape, Timeline
from services.scheduler.core import CoreOptions
from services.scheduler.policies import make_policy
from services.scheduler.simulation.clients import Clients
from services.scheduler.simulation.devices import timings_of
from services.scheduler.simulation.host import HostCosts
from services.scheduler.simulation.pass_time import CurvePassTime
from services.scheduler.simulation.scenario import Machine, Scenario, make_worker, start

MIB = 1024**2
NUM_WORKERS = 3
NUM_TENANTS = 40
LOSS_PERIOD_S = 240.0
REJOIN_S = 15.0
CANCEL_SHARE = 0.1
PATIENCE_S = 8.0  # at most, of clients that go away
SHAPES = ((200, 120), (1500, 60), (6000, 30))  # chat, question about a text, document
SHAPE_WEIGHTS = (6, 3, 1)
CURVE = ((64, 25.0), (512, 69.0), (768, 94.0), (1024, 130.0), (2048, 255.0))  # as the paper has it
NUM_MARKS = 10


def main() -> None:
    """Run, and print a line per tenth of the time."""
    arguments = _arguments()
    ends: Counter[str] = Counter()
    clients = _clients(arguments.seconds, arguments.rate, arguments.seed, ends)
    print("share  s of clock  MiB resident  MiB peak  1,000 objects  requests  ended")
    for tenth in range(1, NUM_MARKS + 1):
        clients.simulator.run(until_s=arguments.seconds * tenth / NUM_MARKS)
        _print_mark(tenth / NUM_MARKS, clients, ends)
    clients.simulator.run()  # what is still open ends
    stats = clients.simulator.core.stats
    print(
        f"{clients.simulator.num_events:,} events, {stats.num_steps:,} passes, "
        f"{stats.num_preemptions:,} preemptions, {stats.num_lost_workers} workers lost; "
        f"ends: {dict(ends)}; KV in use at the end: {stats.kv_usage:.0%}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="an hour of the scheduler on a virtual clock")
    parser.add_argument("--seconds", type=float, default=3600.0, help="on the virtual clock")
    parser.add_argument("--rate", type=float, default=10.0, help="requests/s")
    parser.add_argument("--seed", type=int, default=0, help="of the load and its troubles")
    return parser.parse_args()


def _clients(seconds: float, rate: float, seed: int, ends: Counter[str]) -> Clients:
    """The simulation at its start, with all that will go wrong in its calendar."""
    machine = _machine()
    draw = random.Random(seed)

    def on_end(timeline: Timeline) -> None:
        ends[timeline.failure or "finished"] += 1

    def patience_s(_: int) -> float | None:
        return draw.uniform(0, PATIENCE_S) if draw.random() < CANCEL_SHARE else None

    scenario = Scenario(_options(), machine, NUM_WORKERS, max_tokens=1024, seed=seed)
    clients = start(scenario, _load(seconds, rate, draw), on_end, patience_s)
    for number in range(1, int(seconds / LOSS_PERIOD_S)):
        at_s = number * LOSS_PERIOD_S
        lost = f"worker-{number - 1}"  # the one that has been there for longest
        clients.simulator.at(at_s, partial(clients.simulator.lose, lost))
        joined = make_worker(machine, clients.requests, f"{seed} {number}")
        name = f"worker-{NUM_WORKERS + number - 1}"
        clients.simulator.at(at_s + REJOIN_S, partial(clients.simulator.attach, name, joined))
    return clients


def _machine() -> Machine:
    curve = CurvePassTime(CURVE, ms_per_context_token=0.0002)
    return Machine(
        pass_time=curve,
        host=HostCosts(request_ms=2.0, reply_ms=1.0, link_ms=0.2),
        num_blocks=750,  # of 16 tokens: one or two documents, and some chats
        block_size=16,
        max_model_len=16384,
        calibration=timings_of(curve),
        noise=0.05,
    )


def _options() -> CoreOptions:
    return CoreOptions(
        policy=make_policy("splitfuse"),
        token_budget=None,
        max_num_seqs=256,
        max_queued_tokens=400_000,
        caching=True,
        target_tbt_ms=150.0,
    )


def _load(seconds: float, rate: float, draw: random.Random) -> Load:
    """Open, so that it goes on whatever becomes of requests."""
    shapes = []
    for number in range(int(seconds * rate)):
        prompt, output = draw.choices(SHAPES, SHAPE_WEIGHTS)[0]
        tenant = f"tenant-{number % NUM_TENANTS}"
        priority = draw.choice((0, 0, 0, 1))
        length = draw.randint(prompt // 2, prompt * 3 // 2)
        shapes.append(RequestShape(length, draw.randint(1, 2 * output), tenant, priority))
    return make_load(shapes, OpenLoop(rate, burstiness=0.5), draw)


def _print_mark(share: float, clients: Clients, ends: Counter[str]) -> None:
    gc.collect()
    resident = psutil.Process().memory_info().rss / MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB / 1024)
    print(
        f"{share:5.0%} {clients.simulator.now:11.0f} {resident:13.1f} {peak:9.1f}"
        f" {len(gc.get_objects()) / 1e3:14.1f} {clients.simulator.num_open:9d} "
        f"{sum(ends.values()):6d}",
        flush=True,
    )


if __name__ == "__main__":
    main()
