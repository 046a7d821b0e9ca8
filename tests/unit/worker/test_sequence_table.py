"""What a plan may say, and that a refused one changes nothing."""

from typing import Any

import msgspec
import pytest

from common.messages import Chunk, NewSequence, SamplingParams, StepPlan
from common.token_ids import pack_ids
from services.worker.sequence_table import IdBuffer, PlanError, SequenceTable


def a_table(max_num_seqs: int = 4) -> SequenceTable:
    return SequenceTable(
        block_size=4, num_blocks=10, vocab_size=50, max_model_len=20, max_num_seqs=max_num_seqs
    )


def new(
    sequence_id: int = 1,
    tokens: tuple[int, ...] = (3, 4, 5, 6, 7, 8),
    blocks: tuple[int, ...] = (2, 9),
    num_prompt_tokens: int = 6,
    num_computed_tokens: int = 0,
) -> NewSequence:
    return NewSequence(
        sequence_id,
        pack_ids(tokens),
        num_prompt_tokens,
        num_computed_tokens,
        pack_ids(blocks),
        SamplingParams(),
    )


def chunk(
    sequence_id: int = 1,
    computed: int = 0,
    tokens: int = 6,
    blocks: tuple[int, ...] = (),
    sample: bool = True,
) -> Chunk:
    return Chunk(sequence_id, computed, tokens, pack_ids(blocks), sample)


def plan(
    *chunks: Chunk, announced: tuple[NewSequence, ...] = (), dropped: tuple[int, ...] = ()
) -> StepPlan:
    return StepPlan(1, chunks, announced, dropped)


def run(table: SequenceTable, step: StepPlan, *sampled: int) -> None:
    table.apply(step)
    table.finish(step.chunks, sampled)


def test_a_sequence_goes_from_its_prompt_through_its_outputs() -> None:
    table = a_table()

    run(table, plan(chunk(tokens=4, sample=False), announced=(new(),)))
    run(table, plan(chunk(computed=4, tokens=2)), 11)
    run(table, plan(chunk(computed=6, tokens=1)), 12)
    (sequence,) = table.apply(plan(chunk(computed=7, tokens=1, blocks=(5,))))

    assert sequence.token_ids.view.tolist() == [3, 4, 5, 6, 7, 8, 11, 12]
    assert sequence.block_ids.view.tolist() == [2, 9, 5]
    assert sequence.num_computed_tokens == 7


def test_a_sequence_may_start_behind_a_cached_prefix() -> None:
    table = a_table()

    (sequence,) = table.apply(
        plan(chunk(computed=4, tokens=2), announced=(new(num_computed_tokens=4),))
    )

    assert sequence.num_computed_tokens == 4


def test_a_dropped_sequence_is_unknown_and_dropping_twice_is_nothing() -> None:
    table = a_table()
    run(table, plan(announced=(new(),)))

    run(table, plan(dropped=(1, 1, 77)))

    with pytest.raises(PlanError, match="unknown") as refusal:
        table.apply(plan(chunk()))
    assert refusal.value.sequence_ids == (1,)


def test_a_sequence_announced_again_starts_over() -> None:
    table = a_table()
    run(table, plan(chunk(), announced=(new(),)), 11)

    (sequence,) = table.apply(
        plan(chunk(tokens=2), announced=(new(tokens=(8, 9), num_prompt_tokens=1),))
    )

    assert sequence.token_ids.view.tolist() == [8, 9]
    assert len(table) == 1


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (plan(chunk(2)), "unknown"),
        (plan(chunk(computed=5, tokens=2)), "says 5 tokens are computed, this worker computed 6"),
        (plan(chunk(computed=6, tokens=2)), "chunk of 2 tokens after 6 that samples, of 7 known"),
        (plan(chunk(computed=6, tokens=0, sample=False)), "chunk of 0 tokens"),
        (plan(chunk(computed=6, tokens=-1, sample=False)), "chunk of -1 tokens"),
        (plan(chunk(computed=6, tokens=1, blocks=(10,))), r"block id is outside 0\.\.9"),
        (plan(chunk(computed=6, tokens=1, blocks=(-1,))), r"block id is outside 0\.\.9"),
        (plan(Chunk(1, 6, 1, b"abc", sample=True)), "multiple of 4"),
        (plan(chunk(computed=6, tokens=1), chunk(computed=6, tokens=1)), "two chunks"),
        (plan(announced=(new(2), new(2))), "announced twice"),
        (plan(announced=tuple(new(i) for i in range(4, 8))), "more than the 4 sequences"),
        (plan(announced=(new(2, tokens=(1, 50)),)), "outside the vocabulary of 50"),
        (plan(announced=(new(2, tokens=(-1,)),)), "outside the vocabulary of 50"),
        (plan(announced=(new(2, tokens=()),)), "0 tokens; this worker takes 1 to 20"),
        (plan(announced=(new(2, tokens=(1,) * 21),)), "21 tokens; this worker takes 1 to 20"),
        (plan(announced=(new(2, num_prompt_tokens=7),)), "7 prompt tokens of 6"),
        (plan(announced=(new(2, num_prompt_tokens=0),)), "0 prompt tokens of 6"),
        (plan(announced=(new(2, num_computed_tokens=-1),)), "-1 tokens computed of 6"),
        (plan(announced=(new(2, num_computed_tokens=5, blocks=(3,)),)), "with room for 4"),
        (plan(announced=(new(2, blocks=(0, 10)),)), r"block id is outside 0\.\.9"),
        (plan(chunk(2), announced=(new(2, blocks=(3,)),)), "1 blocks of 4 do not hold 6 tokens"),
    ],
)
def test_a_plan_that_does_not_follow_is_refused_whole(step: StepPlan, reason: str) -> None:
    table = a_table()
    run(table, plan(chunk(), announced=(new(),)), 11)
    good_and_bad = StepPlan(
        2, step.chunks, (new(3), *step.new_sequences), step.dropped_sequence_ids
    )

    with pytest.raises(PlanError, match=reason):
        table.apply(good_and_bad)

    assert len(table) == 1
    run(table, plan(chunk(computed=6, tokens=1)), 12)


def test_what_a_refused_plan_drops_is_dropped() -> None:
    table = a_table()
    run(table, plan(announced=(new(),)))

    with pytest.raises(PlanError):
        table.apply(plan(chunk(99), dropped=(1,)))

    assert len(table) == 0


def test_room_for_new_sequences_is_counted_after_the_drops() -> None:
    table = a_table(max_num_seqs=1)
    run(table, plan(announced=(new(1),)))

    run(table, plan(announced=(new(2),), dropped=(1,)))

    assert len(table) == 1


def test_an_id_buffer_grows_past_any_size() -> None:
    buffer = IdBuffer(b"")

    for begin in range(0, 3000, 7):
        buffer.extend(IdBuffer(pack_ids(range(begin, begin + 7))).view)

    assert buffer.view.tolist() == list(range(3003))


@pytest.mark.parametrize(
    "params",
    [
        {"seed": -1},
        {"seed": 2**64},
        {"temperature": float("nan")},
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"presence_penalty": float("inf")},
        {"logit_bias": ((3, float("nan")),)},
        {"logprobs": -1},
    ],
    ids=str,
)
def test_parameters_that_cannot_be_computed_with_are_refused(params: dict[str, Any]) -> None:
    announced = msgspec.structs.replace(new(), sampling=SamplingParams(**params))

    with pytest.raises(PlanError, match=f"out of range: .*{next(iter(params))}"):
        a_table().apply(plan(announced=(announced,)))
