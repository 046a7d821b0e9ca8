import random
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.workload.arrivals import Arrivals, ClosedLoop, OpenLoop, Recorded
from common.workload.lengths import Distribution, Lengths
from common.workload.load import draw_load, make_load
from common.workload.timeline import RequestShape

SHAPE = RequestShape(num_prompt_tokens=10, num_output_tokens=5)


def test_normal_lengths_have_the_papers_mean_and_deviation() -> None:
    draw = random.Random(1)
    lengths = Lengths(mean_prompt_tokens=1200, mean_output_tokens=60)

    shapes = [lengths.draw(draw) for _ in range(4000)]

    prompts = [shape.num_prompt_tokens for shape in shapes]
    assert fmean(prompts) == pytest.approx(1200, rel=0.02)  # 0.3 / sqrt(4000) is half a per cent
    assert stdev(prompts) == pytest.approx(360, rel=0.05)
    assert fmean(s.num_output_tokens for s in shapes) == pytest.approx(60, rel=0.02)


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.floats(0, 1),
    st.sampled_from(["fixed", "normal", "uniform"]),
    st.integers(),
)
def test_no_length_leaves_its_bounds(
    prompt: int, output: int, spread: float, distribution: Distribution, seed: int
) -> None:
    lengths = Lengths(prompt, output, distribution, spread, 300, 301)

    shape = lengths.draw(random.Random(seed))

    assert 1 <= shape.num_prompt_tokens <= 300
    assert 1 <= shape.num_output_tokens <= 301
    if distribution == "fixed":
        assert shape == RequestShape(prompt, output)


def test_uniform_lengths_stay_within_their_spread() -> None:
    lengths = Lengths(1500, 64, "uniform", 0.3)
    draw = random.Random(2)

    prompts = {lengths.draw(draw).num_prompt_tokens for _ in range(500)}

    assert 1050 <= min(prompts) < 1100 < 1900 < max(prompts) <= 1950  # 1500 ± 30 %


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 5), "prompt length 0 must be in 1..4000"),
        ((5, 4001), "output length 4001 must be in 1..4000"),
        ((5, 5, "normal", 1.5), "spread of lengths 1.5 must be in 0..1"),
    ],
)
def test_lengths_that_cannot_be_drawn_are_refused(arguments: tuple[int, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Lengths(*arguments)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_arrivals_have_the_rate_and_the_variation_that_were_asked_for(burstiness: float) -> None:
    arrivals = OpenLoop(requests_per_s=5.0, burstiness=burstiness)

    times = arrivals.draw_times(20_000, random.Random(3))

    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert min(gaps) >= 0
    assert fmean(gaps) == pytest.approx(0.2, rel=0.05)
    assert stdev(gaps) / fmean(gaps) == pytest.approx(burstiness**-0.5, rel=0.05)


def test_clients_of_a_closed_loop_do_not_all_begin_at_once() -> None:
    load = draw_load(Lengths(100, 10), ClosedLoop(32), 64, random.Random(4))

    assert load.num_clients == 32
    assert len(load.shapes) == 64
    assert all(0 <= start <= 0.32 for start in load.starts_s)  # 32 clients * 10 ms
    assert len(set(load.starts_s)) == 32


def test_a_single_client_begins_at_once() -> None:
    assert ClosedLoop(1).draw_starts(random.Random(5)) == [0.0]


@pytest.mark.parametrize("arrivals", [ClosedLoop(4), OpenLoop(2.0, 0.5), Recorded([0.0] * 20)])
def test_equal_seeds_give_equal_loads(arrivals: Arrivals) -> None:
    lengths = Lengths(100, 10)

    first = draw_load(lengths, arrivals, 20, random.Random(6))
    again = draw_load(lengths, arrivals, 20, random.Random(6))
    other = draw_load(lengths, arrivals, 20, random.Random(7))

    assert first == again
    assert first != other


def test_recorded_arrivals_need_a_request_each() -> None:
    with pytest.raises(ValueError, match="2 recorded arrivals for 1 requests"):
        make_load([SHAPE], Recorded([0.0, 1.0]), random.Random(8))
    with pytest.raises(ValueError, match="must ascend"):
        Recorded([1.0, 0.0])


@pytest.mark.parametrize(("rate", "burstiness"), [(0, 1), (-1, 1), (1, 0), (float("inf"), 1)])
def test_impossible_rates_are_refused(rate: float, burstiness: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        OpenLoop(rate, burstiness)


def test_a_closed_loop_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="a client at least, got 0"):
        ClosedLoop(0)
