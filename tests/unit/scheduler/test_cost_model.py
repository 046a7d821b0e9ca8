"""What a pass costs is learned from passes: closely, robustly, and never upside down."""

import random
from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.messages import StepTiming
from services.scheduler.cost_model import MEMORY, MIN_STEP_MS, NUM_FEATURES, CostModel, StepShape

COUNTS = tuple(field.name for field in fields(StepShape))


def chunk(num_tokens: int, context: int = 0, num_logits: int = 0) -> StepShape:
    """A pass of one prompt chunk behind `context` tokens."""
    attended = num_tokens * context + num_tokens * (num_tokens + 1) // 2
    return StepShape(num_tokens, context + num_tokens, attended, 1, num_logits)


def decodes(count: int, context: int) -> StepShape:
    """A pass of decodes that attend to `context` tokens each."""
    return StepShape(count, count * context, count * context, count, count)


def both(a: StepShape, b: StepShape) -> StepShape:
    return StepShape(*(getattr(a, name) + getattr(b, name) for name in COUNTS))


def shapes(seed: int) -> Iterator[StepShape]:
    """Mixed passes: decodes, chunks, or both."""
    draw = random.Random(seed)
    while True:
        some = decodes(draw.choice((1, 2, 4, 8, 16, 32, 64)), draw.randint(16, 2000))
        prompt = chunk(draw.choice((8, 32, 64, 128, 256, 512)), draw.randint(0, 1500))
        yield draw.choice((some, prompt, both(some, prompt)))


def machine_ms(shape: StepShape) -> float:
    """Like SmolLM2-135M on two cores: reading weights hides the first 24 tokens' arithmetic."""
    return (
        max(7.0, 0.28 * shape.num_tokens)
        + 0.0005 * shape.num_context_tokens
        + 0.0001 * shape.num_attended_tokens
        + 0.05 * shape.num_logits
        + (1.5 if shape.num_logits else 0.0)
    )


CALIBRATION = (
    *(chunk(n, c, logits) for n in (8, 32, 128, 512) for c in (0, 512) for logits in (0, 1)),
    *(decodes(n, c) for n in (1, 8, 32, 64) for c in (32, 512)),
)


def calibrated() -> CostModel:
    return CostModel.from_observations((shape, machine_ms(shape)) for shape in CALIBRATION)


def errors(model: CostModel, pace: float = 1.0, seed: int = 99) -> list[float]:
    """Relative errors over 200 mixed passes, ascending."""
    sample = shapes(seed)
    return sorted(
        abs(model.predict_ms(shape) / (pace * machine_ms(shape)) - 1.0)
        for shape in (next(sample) for _ in range(200))
    )


def test_a_calibration_predicts_passes_that_it_did_not_hold() -> None:
    found = errors(calibrated())

    assert found[100] < 0.03
    assert found[190] < 0.10


def test_passes_alone_teach_as_much() -> None:
    model, sample = CostModel(), shapes(seed=1)

    for _ in range(1000):
        shape = next(sample)
        model.observe(shape, machine_ms(shape))

    found = errors(model)
    assert found[100] < 0.03
    assert found[190] < 0.10
    assert model.relative_error < 0.05


def test_noise_averages_out() -> None:
    draw, sample = random.Random(2), shapes(seed=2)

    model = CostModel.from_observations(
        (shape, machine_ms(shape) * draw.lognormvariate(0.0, 0.1))
        for shape in (next(sample) for _ in range(400))
    )

    assert errors(model)[100] < 0.03


def test_the_first_pass_is_expected_again() -> None:
    model = CostModel()

    model.observe(chunk(128), 40.0)

    assert model.predict_ms(chunk(128)) == pytest.approx(40.0)


def test_a_pass_ten_times_too_slow_hardly_moves_predictions() -> None:
    model = calibrated()
    before = model.predict_ms(decodes(8, 256))

    model.observe(decodes(8, 256), 10 * before)

    # Its residual of 900 % is clipped to three times the usual one, and then weighs one of 21.
    assert model.predict_ms(decodes(8, 256)) == pytest.approx(before, rel=0.01)


def test_one_pass_in_fifty_that_is_ten_times_too_slow_changes_little() -> None:
    model, sample = calibrated(), shapes(seed=3)

    for number in range(2000):
        shape = next(sample)
        model.observe(shape, machine_ms(shape) * (10 if number % 50 == 0 else 1))

    assert errors(model)[100] < 0.04


def test_a_calibration_with_a_hiccup_is_as_good() -> None:
    measured = [(shape, machine_ms(shape)) for shape in CALIBRATION]
    measured[5] = (measured[5][0], 8 * measured[5][1])

    assert errors(CostModel.from_observations(measured))[100] < 0.05


def test_a_machine_that_becomes_slower_for_good_is_followed() -> None:
    model, sample = calibrated(), shapes(seed=4)

    for _ in range(3 * MEMORY):
        shape = next(sample)
        model.observe(shape, 2.0 * machine_ms(shape))

    assert errors(model, pace=2.0)[100] < 0.05


def test_shapes_that_no_longer_occur_follow_the_pace_of_those_that_do() -> None:
    model = calibrated()
    before = model.predict_ms(chunk(512))

    for _ in range(20 * MEMORY):  # decodes alone, on a machine half as fast as it was
        model.observe(decodes(8, 256), 2.0 * machine_ms(decodes(8, 256)))

    assert model.predict_ms(decodes(8, 256)) == pytest.approx(
        2.0 * machine_ms(decodes(8, 256)), rel=0.02
    )
    assert model.predict_ms(chunk(512)) == pytest.approx(2.0 * before, rel=0.15)


def test_equal_shapes_for_ever_leave_nothing_undetermined() -> None:
    model = calibrated()

    for _ in range(20_000):
        model.observe(decodes(8, 256), machine_ms(decodes(8, 256)))
    model.observe(chunk(512), 1.2 * machine_ms(chunk(512)))

    assert errors(model)[100] < 0.03


def test_longer_passes_than_any_measured_cost_what_the_last_tokens_did() -> None:
    measured = [chunk(n, context) for n in (8, 32, 128, 256) for context in (0, 512)]

    model = CostModel.from_observations((shape, machine_ms(shape)) for shape in measured)

    assert model.predict_ms(chunk(1024)) == pytest.approx(machine_ms(chunk(1024)), rel=0.1)


def test_bias_has_the_sign_of_what_is_missing() -> None:
    model = calibrated()

    for _ in range(10):
        model.observe(chunk(128), 1.3 * machine_ms(chunk(128)))

    assert model.bias > 0.0
    assert model.relative_error == pytest.approx(model.bias)


def test_nothing_measured_knows_nothing() -> None:
    model = CostModel.from_observations([])

    assert model.num_observations == 0
    assert model.predict_ms(chunk(512)) == MIN_STEP_MS


def test_coefficients_make_the_model_again() -> None:
    model = calibrated()

    again = CostModel.from_coefficients(model.to_coefficients())

    assert again.to_coefficients() == model.to_coefficients()
    assert errors(again) == errors(model)


def test_a_model_made_of_coefficients_keeps_them_while_they_are_right() -> None:
    model, sample = CostModel.from_coefficients(calibrated().to_coefficients()), shapes(seed=5)

    for _ in range(500):
        shape = next(sample)
        model.observe(shape, machine_ms(shape))

    assert errors(model)[100] < 0.03


@pytest.mark.parametrize(
    "coefficients",
    [
        pytest.param([1.0] * (NUM_FEATURES - 1), id="too few"),
        pytest.param([-1.0] + [1.0] * (NUM_FEATURES - 1), id="negative"),
        pytest.param([float("nan")] * NUM_FEATURES, id="not a number"),
        pytest.param([float("inf")] * NUM_FEATURES, id="infinite"),
        pytest.param([0.0] * NUM_FEATURES, id="all zero"),
    ],
)
def test_coefficients_of_no_model_are_refused(coefficients: list[float]) -> None:
    with pytest.raises(ValueError, match="coefficients"):
        CostModel.from_coefficients(coefficients)


def test_timings_of_a_worker_make_the_model_of_its_observations() -> None:
    timings = [
        StepTiming(
            num_tokens=shape.num_tokens,
            num_context_tokens=shape.num_context_tokens,
            num_attended_tokens=shape.num_attended_tokens,
            num_sequences=shape.num_sequences,
            num_logits=shape.num_logits,
            step_ns=round(1e6 * machine_ms(shape)),
        )
        for shape in CALIBRATION
    ]

    assert CostModel.from_timings(timings).predict_ms(chunk(256)) == pytest.approx(
        calibrated().predict_ms(chunk(256)), rel=1e-4
    )


@pytest.mark.parametrize(
    "timing",
    [
        pytest.param(StepTiming(8, 8, 36, 1, 1, 0), id="no time"),
        pytest.param(StepTiming(8, 8, 36, 1, 1, -5), id="negative time"),
        pytest.param(StepTiming(8, 8, 36, 1, 1, 2**62), id="longer than any pass"),
        pytest.param(StepTiming(0, 0, 0, 0, 0, 10**7), id="an empty pass"),
        pytest.param(StepTiming(8, 8, 36, 1, 2, 10**7), id="more logits than sequences"),
        pytest.param(StepTiming(8, 7, 36, 1, 1, 10**7), id="less context than tokens"),
        pytest.param(StepTiming(8, 8, 2**62, 1, 1, 10**7), id="more than any pass attends to"),
        pytest.param(StepTiming(-8, -8, -36, -1, -1, 10**7), id="negative counts"),
    ],
)
def test_impossible_timings_are_left_out(timing: StepTiming) -> None:
    assert CostModel.from_timings([timing]).num_observations == 0


counts = st.integers(0, 5000)
times = st.floats(1e-9, 1e9)


@st.composite
def any_shape(draw: st.DrawFn) -> StepShape:
    return StepShape(*(draw(counts) for _ in COUNTS))


@given(
    history=st.lists(st.tuples(any_shape(), times), max_size=40),
    shape=any_shape(),
    more=st.sampled_from(COUNTS),
)
def test_more_work_never_costs_less(
    history: list[tuple[StepShape, float]], shape: StepShape, more: str
) -> None:
    model = CostModel()
    for seen, ms in history:
        model.observe(seen, ms)

    larger = replace(shape, **{more: getattr(shape, more) + 1})

    assert 0.0 < model.predict_ms(shape) <= model.predict_ms(larger) < float("inf")


@given(history=st.lists(st.tuples(any_shape(), times), min_size=1, max_size=20))
def test_the_same_history_makes_the_same_model_to_the_last_bit(
    history: list[tuple[StepShape, float]],
) -> None:
    first, second = (
        CostModel.from_observations(history[:5]),
        CostModel.from_observations(history[:5]),
    )
    for shape, ms in history:
        first.observe(shape, ms)
        second.observe(shape, ms)

    assert first.to_coefficients() == second.to_coefficients()
    assert first.relative_error == second.relative_error
