from pathlib import Path

import pytest

from common.config import load_config
from common.errors import ConfigError
from services.scheduler.simulation.options import PlanConfig, SimulateConfig

CURVE = "--curve=64:25,512:69"


def simulate_config(*flags: str) -> SimulateConfig:
    return load_config(SimulateConfig, [CURVE, *flags])


def test_a_curve_is_pairs_of_tokens_and_milliseconds() -> None:
    assert simulate_config().curve == [(64, 25.0), (512, 69.0)]


def test_lists_are_given_with_commas() -> None:
    config = simulate_config("--clients=1,8", "--workers=1,2,4", "--policies=splitfuse,orca")

    assert (config.clients, config.workers) == ([1, 8], [1, 2, 4])
    assert config.compared_policies == ["splitfuse", "orca"]


def test_the_scheduling_policy_alone_is_compared_with_nothing() -> None:
    assert simulate_config("--scheduling-policy=orca").compared_policies == ["orca"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "exactly one of calibration, curve and gpu, not by none"),
        ([CURVE, "--gpu=H100", "--model=m"], "exactly one of .* not by curve and gpu"),
        (["--gpu=H100"], "gpu and model go together"),
        ([CURVE, "--tensor-parallel-size=2"], r"tensor-parallel-size \(2\) needs gpu"),
        (["--calibration=f", "--context-token-us=1"], r"context-token-us \(1\) needs curve"),
        ([CURVE, "--clients=1", "--request-rate=2"], "exclude each other"),
        ([CURVE, "--burstiness=0.5"], r"burstiness \(0\.5\) needs request-rate"),
        (
            [CURVE, "--policies=orca", "--scheduling-policy=prefill-first"],
            "policies say all that scheduling-policy would",
        ),
        ([CURVE, "--policies=fifo"], "fifo is none of splitfuse"),
        (["--curve=64:25"], "at least 2 items"),
        (["--curve=64,512"], "--curve"),
        ([CURVE, "--flop-efficiency=1.5"], "--flop-efficiency"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(SimulateConfig, flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([CURVE], "either request-rate or trace"),
        ([CURVE, "--request-rate=1", "--trace=t"], "either request-rate or trace"),
        ([CURVE, "--request-rate=1", "--sla-tokens-per-s=2,4"], "at most 1 item"),
    ],
)
def test_plans_that_make_no_sense_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(PlanConfig, flags)


def test_efficiencies_become_assumptions() -> None:
    config = load_config(
        SimulateConfig, ["--gpu=H100", "--model=m", "--flop-efficiency=0.4", "--all-reduce-us=9"]
    )

    assert config.model == Path("m")
    assert config.assumptions.flop_efficiency == 0.4
    assert config.assumptions.all_reduce_us == 9
