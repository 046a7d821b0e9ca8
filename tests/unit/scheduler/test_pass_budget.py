"""How large a pass may be, by tokens and by time."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.cost_model import CostModel, StepShape
from services.scheduler.knee import cpu_tokens
from services.scheduler.pass_budget import (
    CPU_ALONE_TOKENS,
    CPU_TOKEN_BUDGET,
    GPU_TOKEN_BUDGET,
    MIN_OBSERVATIONS,
    MIN_PROMPT_TOKENS,
    PassBudget,
)
from services.scheduler.slow_ratio import PRIOR_RATIO
from services.scheduler.splitfuse import TILE
from services.scheduler.work import chunk_shape, plus

FIXED_MS, TOKEN_MS, ATTENDED_MS = 4.0, 0.25, 1e-5
EMPTY = StepShape(0, 0, 0, 0, 0)


def true_ms(shape: StepShape) -> float:
    """What passes of the worker of these tests take."""
    return FIXED_MS + TOKEN_MS * shape.num_tokens + ATTENDED_MS * shape.num_attended_tokens


def calibrated() -> CostModel:
    shapes = [
        chunk_shape(start, num_tokens)
        for start in (0, 500, 2000)
        for num_tokens in (1, 8, 20, 32, 80, 128, 300, 512, 1500)
    ]
    return CostModel.from_observations((shape, true_ms(shape)) for shape in shapes)


def a_budget(
    *, fixed: int | None = None, target_ms: float | None = None, model: CostModel | None = None
) -> PassBudget:
    return PassBudget(
        on_cpu=True, fixed_tokens=fixed, target_ms=target_ms, model=model or calibrated()
    )


@pytest.mark.parametrize(
    ("on_cpu", "tokens"), [(True, CPU_TOKEN_BUDGET), (False, GPU_TOKEN_BUDGET)]
)
def test_until_a_worker_is_known_passes_have_the_size_for_its_kind(
    on_cpu: bool, tokens: int
) -> None:
    budget = PassBudget(on_cpu=on_cpu, fixed_tokens=None, target_ms=50.0, model=CostModel())

    assert not budget.is_known
    assert (
        budget.limit(3, 50.0, prompts_wait=False).tokens,
        budget.limit(3, 50.0, prompts_wait=False).ms,
    ) == (tokens, inf)


def test_a_worker_without_calibration_becomes_known_by_its_passes() -> None:
    budget = a_budget(model=CostModel())
    for number in range(MIN_OBSERVATIONS):
        shape = chunk_shape(0, 16 + number)
        budget.observe(shape, predicted_ms=1.0, device_ms=true_ms(shape), elapsed_ms=1.0)
    budget.refresh()

    assert budget.is_known
    assert budget.limit(0, 50.0, prompts_wait=False).ms < 50.0


def test_passes_of_one_size_do_not_move_the_size_that_was_calibrated() -> None:
    budget = a_budget()
    calibrated_tokens = budget.tokens
    chunk = chunk_shape(200, 128)
    for _ in range(300):  # with the machine to itself
        device_ms = true_ms(chunk) / 5
        budget.observe(chunk, predicted_ms=device_ms, device_ms=device_ms, elapsed_ms=device_ms)
        budget.refresh()

    assert cpu_tokens(budget.model) != calibrated_tokens
    assert budget.tokens == calibrated_tokens


def test_a_fixed_size_is_not_questioned_by_the_knee() -> None:
    assert a_budget(fixed=77).limit(5, inf, prompts_wait=False).tokens == 77


def test_without_a_target_there_is_no_limit_in_time() -> None:
    limit = a_budget().limit(5, inf, prompts_wait=False)

    assert limit.ms == inf
    assert 32 <= limit.tokens <= 512


def test_a_prompt_that_keeps_no_stream_waiting_gets_a_larger_pass_on_a_cpu() -> None:
    budget = a_budget()

    assert (
        budget.limit(0, inf, prompts_wait=False).tokens
        == CPU_ALONE_TOKENS
        > budget.limit(1, inf, prompts_wait=False).tokens
    )
    assert a_budget(fixed=77).limit(0, inf, prompts_wait=False).tokens == 77


def test_decodes_beyond_the_knee_leave_room_for_some_prompt_tokens() -> None:
    assert a_budget().limit(900, inf, prompts_wait=False).tokens == 900 + MIN_PROMPT_TOKENS


def test_a_target_leaves_a_margin_for_passes_that_are_slower_than_predicted() -> None:
    assert a_budget(target_ms=50.0).limit(5, 50.0, prompts_wait=False).ms == pytest.approx(
        50.0 / PRIOR_RATIO
    )


def test_a_generous_target_allows_passes_beyond_the_knee() -> None:
    budget = a_budget(target_ms=500.0)

    assert budget.limit(5, 500.0, prompts_wait=False).tokens > 2 * budget.tokens


def test_no_target_allows_passes_that_are_slower_per_token_than_smaller_ones() -> None:
    # What is beyond 100 tokens takes twice as long, as where caches are too small.
    model = CostModel.from_observations(
        (StepShape(n, 512, 512 * n, 1, 0), 4.0 + 0.25 * n + 0.25 * max(0, n - 100))
        for n in (1, 4, 8, 16, 32, 64, 100, 128, 200, 300, 512, 1024, 2048)
    )
    budget = a_budget(target_ms=500.0, model=model)

    assert budget.limit(5, 500.0, prompts_wait=False).tokens <= 192


def test_while_prompts_wait_a_target_alone_limits_passes() -> None:
    budget = a_budget(target_ms=500.0)

    waiting = budget.limit(5, 500.0, prompts_wait=True)
    assert waiting.tokens > budget.limit(5, 500.0, prompts_wait=False).tokens
    assert waiting.ms == budget.limit(5, 500.0, prompts_wait=False).ms
    assert a_budget().limit(5, inf, prompts_wait=True).tokens == a_budget().tokens
    fixed = a_budget(fixed=64, target_ms=500.0)
    assert fixed.limit(5, 500.0, prompts_wait=True).tokens == 64


def test_of_a_fixed_size_and_a_target_the_smaller_rules() -> None:
    budget = a_budget(fixed=64, target_ms=500.0)

    assert budget.limit(5, 500.0, prompts_wait=False).tokens == 64
    assert budget.limit(5, 8.0, prompts_wait=False).ms < 8.0


def test_a_target_of_one_request_makes_no_pass_larger() -> None:
    budget = a_budget()

    assert budget.limit(5, 500.0, prompts_wait=False).tokens == budget.tokens


def test_what_streams_wait_beyond_the_prediction_is_learned_from_passes_with_prompts() -> None:
    budget = a_budget(target_ms=50.0)
    for _ in range(600):
        prompt, decodes = chunk_shape(0, 100), StepShape(8, 800, 800, 8, 8)
        budget.observe(prompt, predicted_ms=10.0, device_ms=true_ms(prompt), elapsed_ms=14.0)
        budget.observe(decodes, predicted_ms=10.0, device_ms=true_ms(decodes), elapsed_ms=19.0)

    assert budget.limit(5, 50.0, prompts_wait=False).ms == pytest.approx(50.0 / 1.4)


def test_a_prompt_that_fits_the_time_is_taken_whole() -> None:
    assert a_budget().tokens_within(EMPTY, 0, 100, limit_ms=4 + 0.25 * 100 + 1) == 100


def test_a_prompt_that_does_not_is_cut_to_whole_tiles() -> None:
    # 30 ms - 4 ms leave (a little less than) 104 tokens of 0.25 ms: six tiles.
    assert a_budget().tokens_within(EMPTY, 0, 1000, limit_ms=30.0) == 6 * TILE


def test_less_than_a_tile_is_no_room() -> None:
    assert a_budget().tokens_within(EMPTY, 0, 1000, limit_ms=6.0) == 0


@given(st.integers(0, 100), st.integers(0, 4000), st.integers(1, 4000), st.floats(1, 1000))
def test_the_largest_chunk_within_the_time_is_found(
    num_decodes: int, start: int, wanted: int, limit_ms: float
) -> None:
    budget = a_budget()
    decodes = StepShape(num_decodes, num_decodes * 99, num_decodes * 99, num_decodes, num_decodes)

    found = budget.tokens_within(decodes, start, wanted, limit_ms)

    def fits(num_tokens: int) -> bool:
        more = chunk_shape(start, num_tokens, sample=num_tokens == wanted)
        return budget.model.predict_ms(plus(decodes, more)) <= limit_ms

    assert found == wanted or found % TILE == 0
    assert not found or fits(found)
    assert found == wanted or not fits(min(wanted, found + TILE))


def test_a_target_that_no_pass_keeps_is_known_as_such() -> None:
    budget = a_budget()

    # One decode and a tile behind 512 tokens each: 4 + 17 * 0.25 ms and a little.
    assert not budget.can_keep(8.0)
    assert budget.can_keep(9.0)
