from dataclasses import replace

import pytest

from benchmarks.reality.fit import measures, search
from benchmarks.reality.measured import Costs, MeasuredRun, Simulated
from common.calibration_file import CalibrationFile
from common.config import SchedulerConfig
from common.workload.load import Load
from common.workload.measures import summarize
from common.workload.timeline import RequestShape
from services.scheduler.simulation.comparison import core_options_of
from services.scheduler.simulation.devices import timings_of
from services.scheduler.simulation.pass_time import CurvePassTime

CURVE = CurvePassTime([(1, 5.0), (128, 40.0)], ms_per_context_token=0.0005)
SIMULATED = Simulated(
    CalibrationFile("a CPU", "m", "cpu", "cpu", "bfloat16", (), timings_of(CURVE))
)
EXACT = Costs(noise=0.0, interruptions_per_s=0.0)


def a_run(num_clients: int) -> MeasuredRun:
    load = Load([RequestShape(300, 12)] * (4 * num_clients), [0.0] * num_clients, is_closed=True)
    core = core_options_of(SchedulerConfig.model_construct())
    return MeasuredRun("", "", load, core, 1, num_clients, summarize([], ()))


def test_a_slower_device_makes_everything_slower() -> None:
    run = a_run(num_clients=2)
    one = measures(SIMULATED.summarize(run, EXACT))
    two = measures(SIMULATED.summarize(run, replace(EXACT, slowdown=2.0)))

    assert two["TBT P50 ms"] == pytest.approx(2 * one["TBT P50 ms"], rel=0.02)
    assert two["requests/s"] == pytest.approx(one["requests/s"] / 2, rel=0.05)


def test_time_between_passes_is_seen_between_tokens() -> None:
    run = a_run(num_clients=1)
    without = measures(SIMULATED.summarize(run, EXACT))
    with_pause = measures(SIMULATED.summarize(run, replace(EXACT, pass_ms=1.5)))

    assert with_pause["TBT P50 ms"] - without["TBT P50 ms"] == pytest.approx(1.5, abs=0.01)


def test_a_search_finds_the_costs_of_a_smooth_error() -> None:
    aim = Costs(slowdown=1.2, pass_ms=1.0, request_ms=6.0, noise=0.07)

    def error(costs: Costs) -> float:
        return (
            (costs.slowdown - aim.slowdown) ** 2
            + (costs.pass_ms - aim.pass_ms) ** 2
            + (costs.request_ms - aim.request_ms) ** 2
            + (costs.noise - aim.noise) ** 2
        )

    found = search(error, Costs())

    assert found.slowdown == pytest.approx(aim.slowdown, abs=0.01)
    assert found.pass_ms == pytest.approx(aim.pass_ms, abs=0.05)
    assert found.request_ms == pytest.approx(aim.request_ms, abs=0.3)
    assert found.noise == pytest.approx(aim.noise, abs=0.005)


def test_a_search_never_makes_a_cost_negative() -> None:
    found = search(lambda costs: costs.pass_ms + costs.request_ms, Costs(pass_ms=1, request_ms=1))

    assert found == replace(found, pass_ms=0.0, request_ms=0.0)
