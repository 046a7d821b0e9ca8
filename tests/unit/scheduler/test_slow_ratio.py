"""The 99th percentile of how much slower passes are than predicted."""

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.slow_ratio import MAX_RATIO, PRIOR_RATIO, WINDOW, SlowRatio


def after(ratios: list[float]) -> float:
    slow_ratio = SlowRatio()
    for ratio in ratios:
        slow_ratio.observe(ratio)
    return slow_ratio.value


def test_before_the_first_pass_it_is_the_prior() -> None:
    assert after([]) == PRIOR_RATIO


def test_one_hiccup_decides_nothing() -> None:
    assert after([50.0]) == PRIOR_RATIO


def test_what_happens_to_two_of_a_hundred_passes_counts() -> None:
    assert after(([1.0] * 49 + [1.5]) * 20) == 1.5


def test_what_happens_to_one_of_two_hundred_does_not() -> None:
    assert after(([1.0] * 199 + [1.5]) * 10) == 1.0


def test_the_past_is_forgotten() -> None:
    assert after([1.9] * 600 + [1.2] * WINDOW) == 1.2


@pytest.mark.parametrize(("ratio", "value"), [(0.5, 1.0), (9.0, MAX_RATIO)])
def test_it_stays_within_its_bounds(ratio: float, value: float) -> None:
    assert after([ratio] * WINDOW) == value


@given(st.lists(st.floats(1.0, MAX_RATIO), min_size=1, max_size=40))
def test_it_is_the_percentile_of_the_window(ratios: list[float]) -> None:
    many = (ratios * (WINDOW + 200))[: WINDOW + 3 * len(ratios)]

    assert after(many) == sorted(many[-WINDOW:])[ceil(0.99 * WINDOW) - 1]
