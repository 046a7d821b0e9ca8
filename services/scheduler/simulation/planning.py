"""How many replicas a load needs, and with which settings: found by simulation.

For each setting the least number of workers that meets the objective is searched by doubling and
bisection, which takes for granted that more workers never serve worse. A setting that would need
more than the best one so far is given up.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from common.config import SchedulingOptions
from common.errors import ConfigError
from common.workload.arrivals import Arrivals, OpenLoop
from common.workload.load import Load
from common.workload.load_maker import LoadMaker
from common.workload.measures import Percentiles
from services.scheduler.simulation.comparison import Outcome, policy_options, with_budget
from services.scheduler.simulation.loads import Point
from services.scheduler.simulation.options import PlanConfig
from services.scheduler.simulation.scenario import Machine, Scenario, simulate

LOAD_S = 60.0  # a shorter load would end before its queues have grown
MIN_REQUESTS, MAX_REQUESTS = 100, 2000
BUDGETS = (None, 256, 512, 1024, 2048)  # tokens per pass; None: what the scheduler finds


@dataclass(frozen=True, slots=True)
class Candidate:
    """A setting, and the smallest fleet that meets the objective with it."""

    token_budget: int | None
    outcome: Outcome  #: of `outcome.num_workers`, or of the most that were tried
    is_met: bool


@dataclass(frozen=True, slots=True)
class Objective:
    """What has to hold: a share of requests within an SLA, or P99s in milliseconds."""

    slo_share: float
    slo_ttft_ms: float | None
    slo_tbt_ms: float | None

    def is_met(self, outcome: Outcome) -> bool:
        """Whether a run of the load is good enough; a failed request never is."""
        summary = outcome.summary
        if self.slo_ttft_ms is None and self.slo_tbt_ms is None:
            return summary.goodput[0].share >= self.slo_share
        return (
            not summary.num_failed
            and _within(summary.ttft_s, self.slo_ttft_ms)
            and _within(summary.tbt_s, self.slo_tbt_ms)
        )

    def __str__(self) -> str:
        limits = [("first token", self.slo_ttft_ms), ("token gap", self.slo_tbt_ms)]
        said = [f"P99 of the {what} <= {ms:g} ms" for what, ms in limits if ms is not None]
        return " and ".join(said) or f"{self.slo_share:.4g} of the requests within the SLA"


def _within(percentiles: Percentiles | None, limit_ms: float | None) -> bool:
    return limit_ms is None or percentiles is None or 1e3 * percentiles.p99 <= limit_ms


def make_plan(config: PlanConfig, machine: Machine) -> Iterator[Candidate]:
    """One candidate per setting, each searched when it is asked for.

    Raises:
        ConfigError: the trace cannot be read, or a request does not fit a worker.
    """
    point, load = _load(config)
    objective = objective_of(config)
    limit: int | None = None  # workers of the best setting so far
    for token_budget in config.budgets or _default_budgets(config):
        trial = _trial(config, machine, point, load, token_budget)
        outcome = _smallest(
            trial, objective.is_met, first=limit or 1, limit=limit or config.max_workers
        )
        is_met = objective.is_met(outcome)
        if is_met:
            limit = outcome.num_workers
        yield Candidate(token_budget, outcome, is_met)


def objective_of(config: PlanConfig) -> Objective:
    """As the options say it."""
    return Objective(config.slo_share, config.slo_ttft_ms, config.slo_tbt_ms)


def _default_budgets(options: SchedulingOptions) -> tuple[int | None, ...]:
    fixed = options.max_num_batched_tokens
    return BUDGETS if fixed is None else (fixed,)


def _load(config: PlanConfig) -> tuple[Point, Load]:
    """Long enough that queues which grow are seen to."""
    arrivals: Arrivals | None
    num_prompts = config.num_prompts
    if config.request_rate is not None:
        arrivals = OpenLoop(config.request_rate, config.burstiness)
        enough = round(LOAD_S * config.request_rate)
        num_prompts = num_prompts or min(max(enough, MIN_REQUESTS), MAX_REQUESTS)
        maker = LoadMaker(config, num_prompts, config.seed)
    else:
        maker = LoadMaker(config, num_prompts, config.seed)
        arrivals = maker.recorded
    if arrivals is None:
        raise ConfigError(f"{config.trace} has no arrival_s: give --request-rate")
    title = "trace" if config.request_rate is None else f"{config.request_rate:g}/s"
    return Point(title, config.request_rate or 0.0, arrivals), maker.load(arrivals, title)


def _trial(
    config: PlanConfig, machine: Machine, point: Point, load: Load, token_budget: int | None
) -> Callable[[int], Outcome]:
    """Plays the load to so many workers."""
    core = with_budget(policy_options(config, config.scheduling_policy), token_budget)

    def trial(num_workers: int) -> Outcome:
        scenario = Scenario(core, machine, num_workers, "backlog", config.max_tokens, config.seed)
        return Outcome.of(
            simulate(scenario, load),
            config.slas,
            policy=config.scheduling_policy,
            num_workers=num_workers,
            point=point,
        )

    return trial


def _smallest(
    trial: Callable[[int], Outcome], is_met: Callable[[Outcome], bool], *, first: int, limit: int
) -> Outcome:
    """The outcome with the fewest workers that is met; with `limit` workers if none is.

    Args:
        first: workers to begin with.
    """
    worst, count = 0, first
    best = trial(count)
    while not is_met(best) and count < limit:
        worst, count = count, min(2 * count, limit)
        best = trial(count)
    while is_met(best) and count - worst > 1:
        # From above one less is likeliest: settings differ by little.
        middle = count - 1 if worst == 0 else (worst + count) // 2
        outcome = trial(middle)
        if is_met(outcome):
            count, best = middle, outcome
        else:
            worst = middle
    return best
