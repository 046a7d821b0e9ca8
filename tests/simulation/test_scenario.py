"""Simulated runs whose times can be worked out by hand; see `machines.py` for the device."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from common.workload.load import Load
from common.workload.timeline import RequestShape, Timeline
from services.scheduler.simulation.host import HostCosts
from services.scheduler.simulation.scenario import Run, simulate
from services.scheduler.simulation.simulator import SimulationStalled
from tests.unit.scheduler.simulation.machines import (
    a_closed_load,
    a_machine,
    a_scenario,
    an_open_load,
)


def times_ms(timeline: Timeline) -> list[float]:
    return [round(1e3 * (at - timeline.sent_at), 6) for at in timeline.token_at]


def test_a_lone_request_gets_a_token_per_pass() -> None:
    run = simulate(a_scenario(), a_closed_load(1, 1, prompt=50, output=4))

    assert times_ms(run.timelines[0]) == [10, 20, 30, 40]
    assert run.timelines[0].num_output_tokens == 4


def test_a_prompt_longer_than_the_budget_takes_several_passes() -> None:
    run = simulate(a_scenario(), a_closed_load(1, 1, prompt=450, output=2))

    # 200 tokens in 20 ms, again, the last 50 in 10 ms, one more token in 10 ms
    assert times_ms(run.timelines[0]) == [50, 60]


def test_a_closed_loop_sends_the_next_request_when_the_last_is_answered() -> None:
    run = simulate(a_scenario(), a_closed_load(1, 3, output=2))

    assert [round(t.sent_at, 6) for t in run.timelines] == [0.0, 0.020, 0.040]


def test_an_open_loop_does_not_wait_for_answers() -> None:
    run = simulate(a_scenario(), an_open_load([0.0, 0.001, 0.5]))

    assert [t.sent_at for t in run.timelines] == [0.0, 0.001, 0.5]


def test_services_around_the_worker_delay_requests_passes_and_replies() -> None:
    host = HostCosts(request_ms=1, prompt_token_ms=0.1, link_ms=0.5, pass_ms=2, reply_ms=4)
    run = simulate(a_scenario(a_machine(host=host)), a_closed_load(1, 1, prompt=50, output=3))

    # 1 + 50 * 0.1 to arrive, 0.5 there, 10 pass, 0.5 back, 4 reply; then 10 + 2 per pass
    assert times_ms(run.timelines[0]) == [21, 33, 45]


def test_outputs_that_a_stop_token_ends_have_the_length_of_the_load() -> None:
    run = simulate(a_scenario(max_tokens=30), a_closed_load(2, 6, output=5))

    assert {t.num_output_tokens for t in run.timelines} == {5}
    assert run.stats.num_stopped == 6


def test_workers_share_the_load() -> None:
    load = a_closed_load(64, 512, prompt=400, output=20)
    one = simulate(a_scenario(num_workers=1), load)
    four = simulate(a_scenario(num_workers=4), load)

    assert one.duration_s / four.duration_s > 3.5
    assert four.busy_share > 0.9


def test_placement_by_backlog_beats_turns_when_lengths_are_mixed() -> None:
    # Every second prompt is 20 times longer: in turns, they all go to the same of two workers.
    shapes = [RequestShape(1000 if i % 2 else 50, 10) for i in range(200)]
    load = Load(shapes, [0.0] * 16, is_closed=True)
    backlog = simulate(a_scenario(num_workers=2), load)
    turns = simulate(a_scenario(num_workers=2, placement="round-robin"), load)

    assert backlog.duration_s < 0.7 * turns.duration_s


def test_equal_seeds_give_equal_runs_and_others_do_not() -> None:
    def run(seed: int) -> Run:
        return simulate(a_scenario(a_machine(noise=0.1), seed=seed), a_closed_load(8, 40))

    assert run(1).timelines == run(1).timelines
    assert run(1).timelines != run(2).timelines


def test_noise_has_a_mean_of_one() -> None:
    exact = simulate(a_scenario(), a_closed_load(1, 200))
    noisy = simulate(a_scenario(a_machine(noise=0.3)), a_closed_load(1, 200))

    # 800 passes, so the mean's standard error is 0.3 / sqrt(800) = 1 %
    assert noisy.duration_s == pytest.approx(exact.duration_s, rel=0.04)


def test_interruptions_lengthen_passes_by_their_rate_and_mean() -> None:
    exact = simulate(a_scenario(), a_closed_load(1, 400))
    machine = replace(a_machine(), interruptions_per_s=20.0, interruption_ms=15.0)
    interrupted = simulate(a_scenario(machine), a_closed_load(1, 400))

    # 20 a second of 15 ms: 30 % longer, with a standard error of 8 % of that.
    assert interrupted.duration_s == pytest.approx(1.3 * exact.duration_s, rel=0.08)


def test_a_load_that_no_worker_can_hold_is_refused_with_both_lengths() -> None:
    with pytest.raises(ConfigError, match=r"a request of 2101 tokens .* a worker holds 2048"):
        simulate(a_scenario(), a_closed_load(1, 1, prompt=2100, output=1))


def test_requests_without_a_worker_are_reported_and_not_waited_for() -> None:
    with pytest.raises(SimulationStalled, match=r"1 requests wait .* for 0 workers"):
        simulate(a_scenario(num_workers=0), a_closed_load(1, 1))


@settings(max_examples=25, deadline=None)
@given(
    prompts=st.lists(st.integers(1, 900), min_size=1, max_size=30),
    output=st.integers(1, 40),
    num_clients=st.integers(1, 12),
    num_workers=st.integers(1, 3),
    num_blocks=st.integers(60, 200),
)
def test_every_request_of_a_load_ends_with_all_its_tokens_in_order(
    prompts: list[int], output: int, num_clients: int, num_workers: int, num_blocks: int
) -> None:
    """Also when memory is short: 60 blocks hold one of the longest requests."""
    load = Load([RequestShape(p, output) for p in prompts], [0.0] * num_clients, is_closed=True)
    run = simulate(a_scenario(a_machine(num_blocks=num_blocks), num_workers=num_workers), load)

    assert len(run.timelines) == len(prompts)
    for timeline in run.timelines:
        assert timeline.failure is None
        assert timeline.num_output_tokens == len(timeline.token_at) == output
        assert timeline.token_at == sorted(timeline.token_at)
