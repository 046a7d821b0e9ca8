from pathlib import Path

import pytest

from common.config import load_config
from common.errors import ConfigError
from services.scheduler.simulation.devices import make_machine
from services.scheduler.simulation.options import PlanConfig
from services.scheduler.simulation.planning import Candidate, make_plan, objective_of

#: 10 ms for a pass of 100 tokens: a worker serves about 9 requests/s of 1,000 + 10 tokens
BASIC = ("--curve=100:10,1100:110", "--input-len=1000", "--output-len=10", "--num-prompts=150")


def plan(*flags: str) -> list[Candidate]:
    config = load_config(PlanConfig, [*BASIC, *flags])
    return list(make_plan(config, make_machine(config).machine))


def test_twice_the_load_needs_twice_the_replicas() -> None:
    (few,) = plan("--request-rate=7", "--budgets=256")
    (many,) = plan("--request-rate=28", "--budgets=256")

    assert few.is_met
    assert many.is_met
    assert 3 * few.outcome.num_workers <= many.outcome.num_workers <= 5 * few.outcome.num_workers


def test_one_replica_less_would_not_do() -> None:
    (found,) = plan("--request-rate=28", "--budgets=256")
    limit = found.outcome.num_workers - 1
    (less,) = plan("--request-rate=28", "--budgets=256", f"--max-workers={limit}")

    assert not less.is_met
    assert less.outcome.num_workers == limit


def test_a_small_budget_keeps_gaps_that_a_large_one_does_not() -> None:
    small, large = plan(
        "--request-rate=4", "--budgets=128,1024", "--slo-tbt-ms=25", "--max-workers=1"
    )

    assert small.is_met
    assert not large.is_met


def test_settings_that_are_tried_by_default_begin_with_the_schedulers_own() -> None:
    budgets = [candidate.token_budget for candidate in plan("--request-rate=2")]

    assert budgets == [None, 256, 512, 1024, 2048]


def test_a_fixed_budget_is_the_only_setting_tried() -> None:
    (found,) = plan("--request-rate=2", "--max-num-batched-tokens=300")

    assert found.token_budget == 300


def test_a_trace_without_times_needs_a_rate(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"prompt_tokens": 5, "output_tokens": 2}\n')
    config = load_config(PlanConfig, [BASIC[0], f"--trace={trace}"])

    with pytest.raises(ConfigError, match="has no arrival_s"):
        list(make_plan(config, make_machine(config).machine))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "0.99 of the requests within the SLA"),
        (["--slo-ttft-ms=500"], "P99 of the first token <= 500 ms"),
        (
            ["--slo-ttft-ms=500", "--slo-tbt-ms=50"],
            "P99 of the first token <= 500 ms and P99 of the token gap <= 50 ms",
        ),
    ],
)
def test_the_objective_is_said_in_words(flags: list[str], text: str) -> None:
    config = load_config(PlanConfig, [*BASIC, "--request-rate=1", *flags])

    assert str(objective_of(config)) == text
