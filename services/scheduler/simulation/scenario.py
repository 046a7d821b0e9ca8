"""One simulated run: a load on so many equal workers under one scheduler."""

import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import exp
from typing import Literal

from common.errors import ConfigError
from common.messages import StepTiming, WorkerJoin
from common.workload.load import Load
from common.workload.timeline import Timeline
from services.scheduler.core import CoreOptions, SchedulerCore
from services.scheduler.replicas import Replicas
from services.scheduler.simulation.clients import Clients
from services.scheduler.simulation.host import HostCosts
from services.scheduler.simulation.pass_time import InterruptedPassTime, NoisyPassTime, PassTime
from services.scheduler.simulation.placement import RoundRobinReplicas
from services.scheduler.simulation.requests import Requests
from services.scheduler.simulation.worker import SimulatedWorker
from services.scheduler.stats import SchedulerStats

MS_PER_S = 1e3

Placement = Literal["backlog", "round-robin"]


@dataclass(frozen=True, slots=True)
class Machine:
    """One worker: its device, its memory and what is around it."""

    pass_time: PassTime
    host: HostCosts
    num_blocks: int  #: of KV
    block_size: int  #: tokens
    max_model_len: int  #: tokens of prompt and output
    vocab_size: int = 32_000
    max_num_seqs: int = 4096
    device: str = "cuda:0"  #: as the worker announces it; the scheduler's defaults depend on it
    calibration: tuple[StepTiming, ...] = ()  #: passes it has measured before it joins
    #: standard deviation of the logarithm of measured over predicted time of a pass
    noise: float = 0.0
    interruptions_per_s: float = 0.0  #: of computing, by whatever else the machine does
    interruption_ms: float = 10.0  #: mean

    def join(self) -> WorkerJoin:
        """What it announces."""
        return WorkerJoin(
            model="simulated",
            device=self.device,
            backend="simulated",
            dtype="float16",
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            max_model_len=self.max_model_len,
            vocab_size=self.vocab_size,
            max_num_seqs=self.max_num_seqs,
            calibration=self.calibration,
        )


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated; the load comes apart, since one load is played to many scenarios."""

    core: CoreOptions
    machine: Machine
    num_workers: int = 1
    placement: Placement = "backlog"
    #: what clients allow, so that a stop token ends each output; None: lengths are known
    max_tokens: int | None = None
    seed: int = 0  #: of noise and interruptions


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a scenario."""

    timelines: list[Timeline]
    stats: SchedulerStats
    duration_s: float  #: on the virtual clock
    wall_s: float  #: on the real one
    num_events: int  #: that the core handled
    num_passes: int
    num_tokens: int  #: in all passes
    busy_share: float  #: of the workers' time in which a pass ran


def simulate(scenario: Scenario, load: Load) -> Run:
    """Play a load to its end.

    Raises:
        ConfigError: a request of the load is longer than a worker can hold.
        SimulationStalled: the scheduler left requests over; a bug of ours.
    """
    timelines: list[Timeline] = []
    clients = start(scenario, load, timelines.append)
    simulator = clients.simulator
    began = time.perf_counter()
    simulator.run()
    wall_s = time.perf_counter() - began
    duration_s = max((t.token_at[-1] for t in timelines if t.token_at), default=0.0)
    workers = simulator.workers.values()
    return Run(
        timelines=timelines,
        stats=simulator.core.stats,
        duration_s=duration_s,
        wall_s=wall_s,
        num_events=simulator.num_events,
        num_passes=sum(worker.num_passes for worker in workers),
        num_tokens=sum(worker.num_tokens for worker in workers),
        busy_share=sum(w.busy_s for w in workers) / (duration_s * len(workers) or 1.0),
    )


def start(
    scenario: Scenario,
    load: Load,
    on_end: Callable[[Timeline], None],
    patience_s: Callable[[int], float | None] = lambda _: None,
) -> Clients:
    """A simulation at time 0, its workers attached; see `Clients`."""
    machine = scenario.machine
    _check(load, machine)
    requests = Requests(machine.vocab_size, scenario.max_tokens)
    replicas = RoundRobinReplicas() if scenario.placement == "round-robin" else Replicas()
    core = SchedulerCore(scenario.core, replicas)
    clients = Clients(core, load, requests, machine.host, on_end, patience_s)
    for index in range(scenario.num_workers):
        worker = make_worker(machine, requests, f"{scenario.seed} {index}")
        clients.simulator.attach(f"worker-{index}", worker)
    gc.collect()  # of the run before, so that it is not on this one's account
    return clients


def make_worker(machine: Machine, requests: Requests, seed: str) -> SimulatedWorker:
    """A worker whose noise and interruptions are drawn from the seed."""
    pass_time = machine.pass_time
    if machine.noise:
        pass_time = NoisyPassTime(pass_time, _lognormal(machine.noise, seed))
    if machine.interruptions_per_s:
        source = random.Random(f"{seed} interruptions")  # noqa: S311 - nothing secret about it
        # Poisson, of exponential length.
        pass_time = InterruptedPassTime(
            pass_time,
            partial(source.expovariate, machine.interruptions_per_s / MS_PER_S),
            partial(source.expovariate, 1 / machine.interruption_ms),
        )
    return SimulatedWorker(machine.join(), pass_time, requests.sample, machine.host)


def _lognormal(sigma: float, seed: str) -> Callable[[], float]:
    """Factors of mean 1."""
    gauss = random.Random(seed).gauss  # noqa: S311 - nothing secret about it
    return lambda: exp(gauss(-sigma * sigma / 2, sigma))


def _check(load: Load, machine: Machine) -> None:
    capacity = min(machine.max_model_len, machine.num_blocks * machine.block_size)
    longest = max((s.num_prompt_tokens + s.num_output_tokens for s in load.shapes), default=0)
    if longest > capacity:
        raise ConfigError(
            f"the load has a request of {longest} tokens of prompt and output, and a worker holds "
            f"{capacity} (max_model_len {machine.max_model_len}, "
            f"{machine.num_blocks} KV blocks of {machine.block_size})"
        )
