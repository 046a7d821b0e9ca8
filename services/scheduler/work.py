"""Work that is still to do, as shapes of passes and as time on a worker.

All of it is an estimate: it answers who should go where and first, not when something ends.
"""

from services.scheduler.cost_model import CostModel, StepShape

EMPTY = StepShape(0, 0, 0, 0, 0)


def chunk_shape(start: int, num_tokens: int, *, sample: bool = False) -> StepShape:
    """A pass of one chunk.

    Args:
        start: tokens of the sequence before the chunk, >= 0.
        num_tokens: of the chunk, > 0.
        sample: a token is sampled after it.
    """
    end = start + num_tokens
    return StepShape(num_tokens, end, num_attended(start, num_tokens), 1, int(sample))


def num_attended(start: int, num_tokens: int) -> int:
    """How many tokens those of a chunk attend to, themselves included, summed up."""
    return (2 * start + num_tokens + 1) * num_tokens // 2


def plus(one: StepShape, other: StepShape) -> StepShape:
    """A pass of what is in either."""
    return StepShape(
        one.num_tokens + other.num_tokens,
        one.num_context_tokens + other.num_context_tokens,
        one.num_attended_tokens + other.num_attended_tokens,
        one.num_sequences + other.num_sequences,
        one.num_logits + other.num_logits,
    )


def minus(whole: StepShape, part: StepShape) -> StepShape:
    """What a pass holds besides a part of it."""
    return StepShape(
        whole.num_tokens - part.num_tokens,
        whole.num_context_tokens - part.num_context_tokens,
        whole.num_attended_tokens - part.num_attended_tokens,
        whole.num_sequences - part.num_sequences,
        whole.num_logits - part.num_logits,
    )


def prompts_ms(
    model: CostModel,
    num_tokens: int,
    attended: int,
    tokens_per_pass: int,
    decodes: StepShape = EMPTY,
) -> float:
    """Time of prompt tokens, cut into even passes that carry the same decodes each.

    Args:
        model: of the worker.
        num_tokens: of one prompt or of several, >= 0.
        attended: how many tokens they attend to, summed up.
        tokens_per_pass: that prompts have room for, > 0.
        decodes: what else is in every pass.
    """
    if num_tokens <= 0:
        return 0.0
    num_passes = -(-num_tokens // tokens_per_pass)
    share = StepShape(
        num_tokens // num_passes, attended // num_tokens, attended // num_passes, 1, 0
    )
    return num_passes * model.predict_ms(plus(share, decodes))


def outputs_ms(
    model: CostModel, num_prompt_tokens: int, num_output_tokens: int, tokens_per_pass: int
) -> float:
    """Time that the decodes of one request add to the passes that they are in.

    Args:
        model: of the worker.
        num_prompt_tokens: before the first of them.
        num_output_tokens: one decode each, >= 0; the first comes with the prompt.
        tokens_per_pass: of what else is in these passes.
    """
    context = num_prompt_tokens + num_output_tokens // 2
    others = chunk_shape(0, tokens_per_pass, sample=True)
    with_it = plus(others, StepShape(1, context, context, 1, 1))
    more_ms = model.predict_ms(with_it) - model.predict_ms(others)
    return max(0, num_output_tokens - 1) * max(0.0, more_ms)
