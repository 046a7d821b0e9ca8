"""How long a simulated pass takes: functions from its shape to milliseconds."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from services.scheduler.cost_model import CostModel, StepShape


class PassTime(Protocol):
    """The device of a simulated worker."""

    def ms(self, shape: StepShape) -> float:
        """Milliseconds that a pass of this shape takes on the device, > 0."""
        ...


@dataclass(frozen=True, slots=True)
class FittedPassTime:
    """What a cost model learned from passes that ran."""

    model: CostModel

    def ms(self, shape: StepShape) -> float:
        return self.model.predict_ms(shape)


class CurvePassTime:
    """A measured curve of tokens against time, linear between its points.

    DeepSpeed-FastGen's first insight is that a pass costs what its number of tokens costs, hardly
    depending on the number of sequences (arXiv 2401.08671, section 3). Below the first point a
    pass takes as long as at it (there it waits for the weights); beyond the last the slope of the
    last two points goes on.

    Args:
        points: (tokens, milliseconds), two at least, both ascending.
        scale: what the curve's milliseconds are multiplied with: another model, another device.
        ms_per_context_token: for reading the KV of one token, which the curve does not know.
        ms_per_pass: whatever its size: launches, synchronisation, the host between two passes.

    Raises:
        ValueError: the points are too few or not ascending, or a number is negative.
    """

    def __init__(
        self,
        points: Sequence[tuple[int, float]],
        *,
        scale: float = 1.0,
        ms_per_context_token: float = 0.0,
        ms_per_pass: float = 0.0,
    ) -> None:
        self._tokens = [tokens for tokens, _ in points]
        self._ms = [scale * ms for _, ms in points]
        self._ms_per_context_token = ms_per_context_token
        self._ms_per_pass = ms_per_pass
        if len(points) < 2 or not _ascending(self._tokens) or not _ascending(self._ms):
            raise ValueError(f"a curve needs two points or more, both ascending: {list(points)}")
        if self._ms[0] <= 0 or min(ms_per_context_token, ms_per_pass) < 0:
            raise ValueError("milliseconds of a pass must be positive, additions not negative")

    def ms(self, shape: StepShape) -> float:
        return (
            self._at(shape.num_tokens)
            + self._ms_per_context_token * shape.num_context_tokens
            + self._ms_per_pass
        )

    def _at(self, num_tokens: int) -> float:
        tokens, ms = self._tokens, self._ms
        if num_tokens <= tokens[0]:
            return ms[0]
        right = min(bisect_right(tokens, num_tokens), len(tokens) - 1)
        left = right - 1
        slope = (ms[right] - ms[left]) / (tokens[right] - tokens[left])
        return ms[left] + slope * (num_tokens - tokens[left])


@dataclass(frozen=True, slots=True)
class NoisyPassTime:
    """Another pass time, each pass multiplied with a factor of its own."""

    exact: PassTime
    draw_factor: Callable[[], float]  #: measured over predicted, > 0

    def ms(self, shape: StepShape) -> float:
        return self.exact.ms(shape) * self.draw_factor()


@dataclass(frozen=True, slots=True)
class InterruptedPassTime:
    """Another pass time, with everything that takes the processor from a pass for a while.

    A long pass meets more interruptions than a short one, and one of them is long beside a short
    pass and short beside a long one: a tail that no factor has.
    """

    exact: PassTime
    draw_gap_ms: Callable[[], float]  #: of computing until the next interruption, > 0
    draw_length_ms: Callable[[], float]  #: of an interruption, >= 0

    def ms(self, shape: StepShape) -> float:
        exact_ms = self.exact.ms(shape)
        ms, at_ms = exact_ms, self.draw_gap_ms()
        while at_ms < exact_ms:
            ms += self.draw_length_ms()
            at_ms += self.draw_gap_ms()
        return ms


def _ascending(values: Sequence[float]) -> bool:
    return all(before < after for before, after in pairwise(values))
