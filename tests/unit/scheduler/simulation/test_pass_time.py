import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.cost_model import StepShape
from services.scheduler.simulation.pass_time import (
    CurvePassTime,
    InterruptedPassTime,
    NoisyPassTime,
)


def a_shape(num_tokens: int, num_context_tokens: int = 0) -> StepShape:
    return StepShape(num_tokens, num_context_tokens, num_context_tokens, 1, 1)


def test_a_curve_goes_through_its_points_and_is_linear_between_them() -> None:
    curve = CurvePassTime([(64, 25.0), (512, 69.0), (768, 94.0)])

    assert curve.ms(a_shape(64)) == 25.0
    assert curve.ms(a_shape(512)) == 69.0
    assert curve.ms(a_shape(640)) == pytest.approx((69 + 94) / 2)


def test_a_curve_is_flat_before_its_first_point_and_goes_on_behind_its_last() -> None:
    curve = CurvePassTime([(64, 25.0), (512, 69.0), (768, 94.0)])

    assert curve.ms(a_shape(1)) == 25.0  # a pass of one token waits for the weights, too
    assert curve.ms(a_shape(1024)) == pytest.approx(94 + 25)  # 25 ms per 256 tokens


def test_a_curve_is_scaled_and_what_it_does_not_know_is_added() -> None:
    curve = CurvePassTime(
        [(1, 10.0), (101, 20.0)], scale=2.0, ms_per_context_token=0.001, ms_per_pass=3.0
    )

    assert curve.ms(a_shape(51, num_context_tokens=4000)) == pytest.approx(2 * 15 + 4 + 3)


@pytest.mark.parametrize(
    "points",
    [[], [(1, 1.0)], [(1, 1.0), (1, 2.0)], [(2, 1.0), (1, 2.0)], [(1, 2.0), (2, 1.0)]],
    ids=["none", "one", "equal tokens", "descending tokens", "descending times"],
)
def test_a_curve_needs_two_ascending_points(points: list[tuple[int, float]]) -> None:
    with pytest.raises(ValueError, match="two points or more"):
        CurvePassTime(points)


def test_a_curve_refuses_to_cost_nothing() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        CurvePassTime([(1, 0.0), (2, 1.0)])


@given(st.integers(1, 5000), st.integers(0, 5000))
def test_more_tokens_never_cost_less(num_tokens: int, more: int) -> None:
    curve = CurvePassTime([(64, 25.0), (512, 69.0), (768, 94.0), (2048, 255.0)])

    assert curve.ms(a_shape(num_tokens)) <= curve.ms(a_shape(num_tokens + more))


def test_noise_multiplies_each_pass_with_a_factor_of_its_own() -> None:
    factors = iter([1.0, 3.0])
    noisy = NoisyPassTime(CurvePassTime([(1, 10.0), (2, 20.0)]), lambda: next(factors))

    assert [noisy.ms(a_shape(1)), noisy.ms(a_shape(1))] == [10.0, 30.0]


def test_a_pass_meets_an_interruption_for_each_gap_that_it_outlasts() -> None:
    gaps, lengths = iter([4.0, 4.0, 4.0, 11.0]), iter([1.0, 20.0])
    interrupted = InterruptedPassTime(
        CurvePassTime([(1, 10.0), (2, 20.0)]), lambda: next(gaps), lambda: next(lengths)
    )

    assert interrupted.ms(a_shape(1)) == 10.0 + 1.0 + 20.0  # at 4 and 8 ms; not at 12
    assert interrupted.ms(a_shape(1)) == 10.0
