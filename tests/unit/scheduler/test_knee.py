"""Where the throughput of a pass stops to rise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.cost_model import CostModel, StepShape
from services.scheduler.knee import CPU_SIZES, SIZES, cpu_tokens, knee_tokens, saturating_tokens


def model_of(fixed_ms: float, token_ms: float) -> CostModel:
    """A worker whose passes take `fixed_ms`, and `token_ms` more for each token."""
    return CostModel.from_observations(
        (StepShape(n, n * 512, n * 512, 1, 0), fixed_ms + token_ms * n)
        for n in (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
    )


def test_a_cpu_that_reads_weights_for_ten_tokens_time_has_its_knee_near_a_hundred() -> None:
    # 3 ms of weights, 0.3 ms per token: a tenth of a pass of 96 tokens is the reading of weights.
    assert knee_tokens(model_of(3.0, 0.3), CPU_SIZES) in (64, 96, 128)


@pytest.mark.parametrize(
    ("fixed_ms", "token_ms", "tokens"),
    [
        (0.5, 0.33, 128),  # 2 cores, a model of 135M: flat, but for what services take
        (5.0, 3.3, 64),  # ten times slower, and services are as fast
        (0.1, 0.04, 256),  # eight times faster
        (40.0, 0.33, 256),  # weights that take longest
    ],
)
def test_a_cpu_has_the_smallest_pass_with_nearly_all_of_the_throughput(
    fixed_ms: float, token_ms: float, tokens: int
) -> None:
    assert cpu_tokens(model_of(fixed_ms, token_ms)) == tokens


@given(st.lists(st.floats(0.97, 1.03), min_size=5, max_size=5))
def test_noise_of_a_flat_curve_hardly_moves_the_size(noise: list[float]) -> None:
    # As measured here: 3.05 tokens/ms at 64 tokens, 3.1 at 256.
    sizes = zip(CPU_SIZES, noise, strict=True)
    model = CostModel.from_observations(
        (StepShape(n, 512, n * 512, 1, 0), factor * (0.5 + 0.322 * n)) for n, factor in sizes
    )

    assert cpu_tokens(model) in (96, 128, 192)


def test_the_paper_machine_has_its_knee_where_the_paper_runs_it() -> None:
    # Figure of insight 1: 22-28 ms at 64 tokens, 92-97 at 768, 255 at 2,048; FastGen takes 768.
    assert knee_tokens(model_of(17.0, 0.116)) in (384, 512, 768)


@given(st.floats(0.5, 50), st.floats(0.001, 2))
def test_dearer_weights_move_the_knee_up_not_down(fixed_ms: float, token_ms: float) -> None:
    knees = [knee_tokens(model_of(fixed_ms * factor, token_ms)) for factor in (1, 4, 16)]

    assert knees == sorted(knees)


@pytest.mark.parametrize("sizes", [SIZES, CPU_SIZES])
def test_the_knee_is_one_of_the_sizes_even_of_a_straight_line(sizes: tuple[int, ...]) -> None:
    assert knee_tokens(model_of(0.0, 1.0), sizes) in sizes


def test_throughput_is_saturated_where_little_is_left_to_gain() -> None:
    # n / (3 + 0.1 n): 2,048 tokens reach 98.6 % of 10 per ms, 99 % of that take 1,245.
    assert saturating_tokens(model_of(3.0, 0.1), SIZES) in (1024, 1536)


def test_the_curve_is_not_saturated_before_its_knee() -> None:
    for fixed_ms in (0.5, 3.0, 20.0):
        model = model_of(fixed_ms, 0.1)
        assert saturating_tokens(model, SIZES) >= knee_tokens(model, SIZES)
