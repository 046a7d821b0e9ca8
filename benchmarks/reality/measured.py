"""Runs of a bench result file, and the same loads simulated."""

from dataclasses import dataclass
from pathlib import Path

from common.calibration_file import CalibrationFile
from common.config import load_config
from common.errors import ConfigError
from common.workload.load import Load
from common.workload.measures import Summary, summarize
from services.scheduler.core import CoreOptions
from services.scheduler.cost_model import CostModel, StepShape
from services.scheduler.simulation.comparison import core_options_of
from services.scheduler.simulation.host import HostCosts
from services.scheduler.simulation.pass_time import FittedPassTime, PassTime
from services.scheduler.simulation.scenario import Machine, Scenario, simulate
from splitfuse.bench.results import Results, Run, read_results
from splitfuse.options import ServeConfig

US_PER_S = 1e6
KV_CACHE_TOKENS = 262_144  # a CPU's default cache holds at least so many for small models
BLOCK_SIZE = 16
MAX_MODEL_LEN = 8192


@dataclass(frozen=True, slots=True)
class Costs:
    """What a calibration does not know: the services that share the machine with the worker."""

    slowdown: float = 1.0  #: of passes, since others use the caches and cores
    pass_ms: float = 0.0
    sampled_token_ms: float = 0.0
    request_ms: float = 0.0
    prompt_token_ms: float = 0.0
    noise: float = 0.02
    interruptions_per_s: float = 1.0
    interruption_ms: float = 10.0

    def host(self) -> HostCosts:
        """As the simulator takes them."""
        return HostCosts(
            request_ms=self.request_ms,
            prompt_token_ms=self.prompt_token_ms,
            pass_ms=self.pass_ms,
            sampled_token_ms=self.sampled_token_ms,
        )


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One load as it was sent to a server, and what came of it."""

    load_name: str  #: the same for all rounds of it
    server: str  #: label in the result file
    load: Load
    core: CoreOptions
    num_workers: int
    num_clients: int | None
    summary: Summary


def measured_runs(path: Path) -> list[MeasuredRun]:
    """All complete runs of a result file.

    Raises:
        ConfigError: it is no result file, or a server's flags are not understood.
    """
    results = read_results(path)
    return [
        _measured(path, results, index, run)
        for index, run in enumerate(results.runs)
        if run.timelines and not run.interrupted
    ]


def _measured(path: Path, results: Results, index: int, run: Run) -> MeasuredRun:
    flags = results.servers.get(run.label, [])
    config = load_config(ServeConfig, flags)
    timelines = [timeline.timeline() for timeline in run.timelines]
    if any(timeline.failure for timeline in timelines):
        raise ConfigError(f"{path}: run {index + 1} has failed requests")
    count = len(timelines) if run.num_clients is None else run.num_clients
    load = Load(
        shapes=[timeline.shape for timeline in timelines],
        starts_s=[timeline.sent_at for timeline in timelines[:count]],
        is_closed=run.num_clients is not None,
    )
    clients = "open" if run.num_clients is None else f"{run.num_clients} clients"
    return MeasuredRun(
        load_name=clients,
        server=run.label,
        load=load,
        core=core_options_of(config),
        num_workers=run.num_workers or 1,
        num_clients=run.num_clients,
        summary=summarize(timelines, (), run.num_clients),
    )


@dataclass(frozen=True, slots=True)
class _Slower:
    """Another pass time, with everything taking so many times longer."""

    exact: PassTime
    factor: float

    def ms(self, shape: StepShape) -> float:
        return self.factor * self.exact.ms(shape)


class Simulated:
    """This machine by its calibration.

    Args:
        calibration: of `splitfuse bench calibrate`.
    """

    def __init__(self, calibration: CalibrationFile) -> None:
        self._calibration = calibration
        self._pass_time = FittedPassTime(CostModel.from_timings(calibration.timings))

    def summarize(self, run: MeasuredRun, costs: Costs, seed: int = 0) -> Summary:
        """What the simulator says of a load that was measured."""
        machine = Machine(
            pass_time=_Slower(self._pass_time, costs.slowdown),
            host=costs.host(),
            num_blocks=KV_CACHE_TOKENS // BLOCK_SIZE,
            block_size=BLOCK_SIZE,
            max_model_len=MAX_MODEL_LEN,
            device=self._calibration.device,
            calibration=self._calibration.timings,
            noise=costs.noise,
            interruptions_per_s=costs.interruptions_per_s,
            interruption_ms=costs.interruption_ms,
        )
        scenario = Scenario(run.core, machine, run.num_workers, seed=seed)
        return summarize(simulate(scenario, run.load).timelines, (), run.num_clients)
