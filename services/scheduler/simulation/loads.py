"""From options to the loads of a simulation."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.workload.arrivals import Arrivals, ClosedLoop, OpenLoop
from common.workload.load import Load
from common.workload.load_maker import LoadMaker
from services.scheduler.simulation.options import DEFAULT_CLIENTS, SimulateConfig


@dataclass(frozen=True, slots=True)
class Point:
    """One load of a comparison."""

    title: str
    x: float  #: clients or requests/s
    arrivals: Arrivals

    @property
    def num_clients(self) -> int | None:
        return self.arrivals.num_clients if isinstance(self.arrivals, ClosedLoop) else None


def points_of(config: SimulateConfig, num_workers: int) -> list[Point]:
    """The loads that the options ask for, for so many workers.

    Raises:
        ConfigError: the trace cannot be read.
    """
    factor = num_workers if config.clients_per_worker else 1
    if config.request_rate is not None:
        burstiness = config.burstiness or 1.0
        rates = [factor * rate for rate in config.request_rate]
        return [Point(f"{rate:g}/s", rate, OpenLoop(rate, burstiness)) for rate in rates]
    recorded = LoadMaker(config, config.num_prompts, config.seed).recorded
    if recorded is not None and config.clients is None:
        return [Point("trace", 1.0, recorded)]
    clients: Sequence[int] = config.clients or DEFAULT_CLIENTS
    return [Point(str(factor * n), factor * n, ClosedLoop(factor * n)) for n in clients]


def load_at(config: SimulateConfig, point: Point, num_workers: int, round_number: int) -> Load:
    """The load of a point; rounds have other requests, policies the same ones."""
    factor = num_workers if config.clients_per_worker and config.trace is None else 1
    num_prompts = config.num_prompts and factor * config.num_prompts
    maker = LoadMaker(config, num_prompts, config.seed)
    return maker.load(point.arrivals, f"{point.title} {round_number}")
