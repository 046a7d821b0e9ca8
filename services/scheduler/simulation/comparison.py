"""Every policy, number of workers and load of `splitfuse simulate`, one after the other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from common.config import SchedulerConfig, SchedulingOptions
from common.workload.measures import Sla, Summary, summarize
from services.scheduler.core import CoreOptions
from services.scheduler.service import core_options
from services.scheduler.simulation.loads import Point, load_at, points_of
from services.scheduler.simulation.options import POLICIES, SimulateConfig
from services.scheduler.simulation.scenario import Machine, Run, Scenario, simulate


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run in numbers."""

    policy: str  #: and placement, where it is not by backlog
    num_workers: int
    load: str
    x: float  #: clients or requests/s of the load
    num_clients: int | None
    round_number: int  #: from 1
    summary: Summary
    num_passes: int
    tokens_per_pass: float
    busy_share: float
    num_preemptions: int
    duration_s: float  #: simulated
    wall_s: float

    @classmethod
    def of(
        cls,
        run: Run,
        slas: Sequence[Sla],
        *,
        policy: str,
        num_workers: int,
        point: Point,
        round_number: int = 1,
    ) -> "Outcome":
        """Sum up a run."""
        stats = run.stats
        return cls(
            policy=policy,
            num_workers=num_workers,
            load=point.title,
            x=point.x,
            num_clients=point.num_clients,
            round_number=round_number,
            summary=summarize(run.timelines, slas, point.num_clients),
            num_passes=run.num_passes,
            tokens_per_pass=run.num_tokens / max(run.num_passes, 1),
            busy_share=run.busy_share,
            num_preemptions=stats.num_preemptions,
            duration_s=run.duration_s,
            wall_s=run.wall_s,
        )


def compare(config: SimulateConfig, machine: Machine) -> Iterator[Outcome]:
    """Simulate what the options ask for, all policies on equal loads.

    Raises:
        ConfigError: the trace cannot be read, or a request does not fit a worker.
    """
    for num_workers in config.workers:
        for point in points_of(config, num_workers):
            for round_number in range(1, config.rounds + 1):
                load = load_at(config, point, num_workers, round_number)
                for policy, placement in product(config.compared_policies, config.placements):
                    scenario = Scenario(
                        core=policy_options(config, policy),
                        machine=machine,
                        num_workers=num_workers,
                        placement=placement,
                        max_tokens=config.max_tokens,
                        seed=config.seed + round_number,
                    )
                    yield Outcome.of(
                        simulate(scenario, load),
                        config.slas,
                        policy=policy if placement == "backlog" else f"{policy}, {placement}",
                        num_workers=num_workers,
                        point=point,
                        round_number=round_number,
                    )


def policy_options(options: SchedulingOptions, policy: str) -> CoreOptions:
    """The core's options under a policy of `POLICIES`.

    What says how prompts are cut is left out where they are not.
    """
    changes = dict(POLICIES[policy])
    if changes["scheduling_policy"] != "splitfuse":
        changes |= {"partition": None, "target_tbt_ms": None}
    return core_options_of(options, changes)


def core_options_of(
    options: SchedulingOptions, changes: Mapping[str, str | None] | None = None
) -> CoreOptions:
    """The core's options as the scheduler service makes them, with some options changed."""
    fields = {name: getattr(options, name) for name in SchedulingOptions.model_fields}
    return core_options(SchedulerConfig.model_construct(**(fields | dict(changes or {}))))


def with_budget(options: CoreOptions, token_budget: int | None) -> CoreOptions:
    """The same with another number of tokens per pass; None: what the scheduler finds."""
    return replace(options, token_budget=token_budget)
