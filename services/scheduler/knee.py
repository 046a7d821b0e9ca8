"""The size of a pass at the knee of the throughput curve, and where the curve is flat.

Tokens per second rise with the size of a pass, steeply while weights are read for few tokens,
hardly any more once arithmetic takes longer than that. The knee is where the curve is farthest
above the line through its ends (Satopää et al., "Finding a Kneedle in a Haystack", 2011).
"""

from collections.abc import Sequence

from services.scheduler.cost_model import CostModel, StepShape

#: tokens of a pass; more do not raise throughput, and prompts that come in wait longer
SIZES = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
#: a CPU's curve is nearly flat above, and gaps between tokens grow with the pass; a calibration on
#: a busy machine may end before it gets to larger passes, and prompts should not suffer for it
CPU_SIZES = SIZES[SIZES.index(64) : SIZES.index(256) + 1]
CPU_PASS_MS = 3.0  # that the services of a mesh take from the cores of a CPU worker for each pass
CPU_SHARE = 0.94  # of the best throughput: what is left to gain is not worth twice the gap
LARGE_SIZES = (*SIZES, 3072, 4096, 6144, 8192)
TYPICAL_CONTEXT = 512  # tokens that each token attends to
SATURATED = 0.99  # of the best throughput


def knee_tokens(model: CostModel, sizes: Sequence[int] = SIZES) -> int:
    """The knee of throughput over the size of a pass, one of `sizes`.

    Args:
        model: of the worker.
        sizes: ascending, at least two. The curve is looked at from the first to the last.
    """
    rates = _rates(model, sizes)
    first, last = rates[0], rates[-1]
    span = sizes[-1] - sizes[0]

    def above_the_line(index: int) -> float:
        return rates[index] - first - (last - first) * (sizes[index] - sizes[0]) / span

    return sizes[max(range(len(sizes)), key=above_the_line)]


def saturating_tokens(model: CostModel, sizes: Sequence[int] = LARGE_SIZES) -> int:
    """The smallest of `sizes` (ascending) with SATURATED of the best throughput of all of them."""
    return _smallest(sizes, _rates(model, sizes), SATURATED)


def cpu_tokens(model: CostModel) -> int:
    """The smallest of CPU_SIZES with CPU_SHARE of the best throughput, services counted.

    Not the knee: of a curve that is flat to a few per cent, that is wherever noise lifts it.
    """
    return _smallest(CPU_SIZES, _rates(model, CPU_SIZES, CPU_PASS_MS), CPU_SHARE)


def _smallest(sizes: Sequence[int], rates: Sequence[float], share: float) -> int:
    enough = share * max(rates)
    return next(size for size, rate in zip(sizes, rates, strict=True) if rate >= enough)


def _rates(model: CostModel, sizes: Sequence[int], pass_ms: float = 0.0) -> list[float]:
    """Tokens per millisecond, where each pass takes `pass_ms` more than predicted."""
    return [size / (model.predict_ms(_pass_of(size)) + pass_ms) for size in sizes]


def _pass_of(num_tokens: int) -> StepShape:
    """A chunk whose tokens all see the typical context: only its size differs."""
    return StepShape(
        num_tokens=num_tokens,
        num_context_tokens=TYPICAL_CONTEXT,
        num_attended_tokens=num_tokens * TYPICAL_CONTEXT,
        num_sequences=1,
        num_logits=0,
    )
