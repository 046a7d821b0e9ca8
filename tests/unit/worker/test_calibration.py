"""Before the first request an engine has measured passes of all kinds, as far as it has room."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from common.config import WorkerOptions
from services.worker.calibration import (
    ROUNDS,
    STARTUP_PASSES,
    Pass,
    calibrate,
    curve_passes,
    room_tokens,
)
from services.worker.engine import Engine
from tests.support.plans import Planner
from tests.unit.worker.conftest import OPTIONS

Pair = tuple[Engine, PreTrainedModel]
PASSES = (
    Pass(num_prompt_tokens=8),
    Pass(num_prompt_tokens=24, prompt_context=8, sample=True),
    Pass(3, 16),
    Pass(2, 16, num_prompt_tokens=5, prompt_context=32),
)


def standing() -> float:
    """A clock that never moves: nothing takes too long."""
    return 0.0


def ticking(step_s: float) -> Callable[[], float]:
    """A clock that moves on by so much with each reading."""
    ticks: Iterator[int] = count()
    return lambda: step_s * next(ticks)


def engine_with(model: Path, **options: object) -> Engine:
    return Engine(model, OPTIONS.model_copy(update=options))


def test_each_pass_is_timed_with_what_was_in_it(pair: Pair) -> None:
    timings = calibrate(pair[0], standing, PASSES)

    found = {
        wanted: (
            timing.num_tokens,
            timing.num_context_tokens,
            timing.num_attended_tokens,
            timing.num_sequences,
            timing.num_logits,
        )
        for wanted, timing in timings.items()
    }
    assert found == {
        PASSES[0]: (8, 8, 36, 1, 0),  # 36 = 1 + 2 + ... + 8
        PASSES[1]: (24, 32, 24 * 8 + 300, 1, 1),
        PASSES[2]: (3, 51, 51, 3, 3),
        PASSES[3]: (7, 34 + 37, 34 + 5 * 32 + 15, 3, 2),
    }
    assert all(timing.step_ns > 0 for timing in timings.values())


def test_the_engine_is_left_as_it_was(pair: Pair) -> None:
    engine, model = pair
    calibrate(engine, standing, PASSES)
    assert engine.num_sequences == 0

    planner = Planner(engine)
    sequence = planner.sequence(range(1, 20), range(3))
    planner.prefill(sequence, chunk=19)

    expected = model(torch.tensor([list(range(1, 20))])).logits[0, -1].argmax()
    assert sequence.output == [int(expected)]


def test_passes_that_do_not_fit_the_cache_are_left_out(tiny_llama: tuple[Path, object]) -> None:
    engine = engine_with(tiny_llama[0])
    tokens = engine.join.num_blocks * engine.join.block_size
    too_long = Pass(num_prompt_tokens=tokens)
    too_many = Pass(num_decodes=engine.join.num_blocks, decode_context=8)

    assert list(calibrate(engine, standing, (*PASSES[:2], too_long, too_many))) == [*PASSES[:2]]


@pytest.mark.parametrize("kv_cache_memory", ["128KiB", "512KiB", "8MiB"])
@pytest.mark.parametrize("block_size", [1, 7, 16, 128])
def test_no_pass_is_more_than_the_engine_can_hold(
    tiny_llama: tuple[Path, object], block_size: int, kv_cache_memory: str
) -> None:
    options = WorkerOptions.model_validate(
        {
            **OPTIONS.model_dump(),
            "block_size": block_size,
            "kv_cache_memory": kv_cache_memory,
            "backend": "cpu",
        }
    )
    engine = Engine(tiny_llama[0], options)

    timings = calibrate(engine, standing, rounds=1)  # a plan that is refused would raise

    assert all(t.num_context_tokens > 0 for t in timings.values())
    assert room_tokens(engine.join) < engine.join.max_model_len


def test_a_start_measures_all_that_is_not_longer_than_the_model_takes(pair: Pair) -> None:
    engine = pair[0]
    longest = engine.join.max_model_len - 1
    fitting = [p for p in STARTUP_PASSES if max(p.document_tokens, p.decode_context) <= longest]

    assert len(calibrate(engine, standing, rounds=1)) == len(fitting)


def test_time_that_is_over_ends_the_measuring(pair: Pair) -> None:
    begun: list[None] = []

    # The clock is read for the limit, and then before each pass: 1, 2, 3, too late.
    calibrate(
        pair[0], ticking(1.0), PASSES, time_limit_s=3.5, checkpoint=lambda: begun.append(None)
    )

    assert len(begun) == 3


def test_a_first_pass_is_not_counted(pair: Pair) -> None:
    assert not calibrate(pair[0], ticking(1.0), PASSES, time_limit_s=1.5)


def test_a_pass_that_would_take_too_long_is_left_out(pair: Pair) -> None:
    short, long = Pass(num_prompt_tokens=1), Pass(num_prompt_tokens=128)
    took_s = calibrate(pair[0], standing, (short,))[short].step_ns / 1e9

    # Judging by the short one, the long one takes 128 times as long.
    timings = calibrate(pair[0], standing, (short, long), time_limit_s=16 * took_s)

    assert list(timings) == [short]


def test_giving_up_leaves_at_once(pair: Pair) -> None:
    class Stopped(Exception):
        pass

    calls = count()

    def checkpoint() -> None:
        if next(calls) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        calibrate(pair[0], standing, PASSES, checkpoint=checkpoint)

    assert next(calls) == 4


def test_each_pass_is_timed_once_a_round(pair: Pair) -> None:
    begun: list[None] = []

    calibrate(pair[0], standing, PASSES, time_limit_s=1e6, checkpoint=lambda: begun.append(None))

    assert len(begun) == ROUNDS * len(PASSES) + 2  # one that warms up, one that writes blocks


def test_a_curve_has_each_size_behind_each_context() -> None:
    assert curve_passes((4, 1), (8, 0)) == (
        Pass(num_prompt_tokens=1),
        Pass(num_prompt_tokens=4),
        Pass(num_prompt_tokens=1, prompt_context=8),
        Pass(num_prompt_tokens=4, prompt_context=8),
    )
