from pathlib import Path

import pytest

from common.config import load_config
from common.workload.arrivals import ClosedLoop, OpenLoop, Recorded
from services.scheduler.simulation.loads import load_at, points_of
from services.scheduler.simulation.options import SimulateConfig


def config(*flags: str) -> SimulateConfig:
    return load_config(SimulateConfig, ["--curve=64:25,512:69", *flags])


def test_closed_loops_are_the_default() -> None:
    points = points_of(config(), num_workers=1)

    assert [point.arrivals for point in points] == [ClosedLoop(n) for n in (1, 2, 4, 8, 16, 32)]
    assert [point.num_clients for point in points] == [1, 2, 4, 8, 16, 32]


def test_rates_are_open_loops() -> None:
    points = points_of(config("--request-rate=1,2.5", "--burstiness=0.5"), num_workers=1)

    assert [point.arrivals for point in points] == [OpenLoop(1.0, 0.5), OpenLoop(2.5, 0.5)]
    assert points[1].num_clients is None


def test_clients_per_worker_grow_with_the_workers() -> None:
    asked = config("--clients=4", "--clients-per-worker", "--num-prompts=10")
    (point,) = points_of(asked, num_workers=3)

    assert point.num_clients == 12
    assert len(load_at(asked, point, num_workers=3, round_number=1).shapes) == 30


def test_a_trace_with_times_is_replayed(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        '{"prompt_tokens": 5, "output_tokens": 2, "arrival_s": 1.0}\n'
        '{"prompt_tokens": 6, "output_tokens": 3, "arrival_s": 2.5}\n'
    )
    asked = config(f"--trace={trace}")
    (point,) = points_of(asked, num_workers=1)
    load = load_at(asked, point, num_workers=1, round_number=1)

    assert point.arrivals == Recorded((0.0, 1.5))
    assert [shape.num_prompt_tokens for shape in load.shapes] == [5, 6]


@pytest.mark.parametrize("again", [True, False])
def test_loads_are_equal_in_a_round_and_differ_between_rounds(again: bool) -> None:
    asked = config("--clients=4")
    (point,) = points_of(asked, num_workers=1)
    first, second = (load_at(asked, point, 1, n) for n in (1, 1 if again else 2))

    assert (first == second) is again
