"""What a forward pass costs: milliseconds from what is in it, learned from the passes that ran.

A pass reads all weights once, multiplies them with every token, reads the KV of each sequence and
compares every token with its context. So its time is close to linear in the features of
`StepShape`, with coefficients that belong to one worker: its device, backend and model. Time over
tokens bends where reading weights no longer hides the arithmetic, so tokens count by segments.

The fit is recursive least squares with forgetting, in its information form: the model keeps the
normal equations of weighted, decaying observations and solves them again after each. Nothing is
inverted, so nothing drifts over any number of updates, and three things come cheaply:

- Coefficients stay >= 0 (projected Gauss-Seidel), so more work never costs less.
- What was calibrated does not decay with the rest. Shapes that no longer occur are still predicted
  from there, and a direction without observations cannot wind up (Parkum, Poulsen, Holst 1992,
  "Recursive forgetting algorithms", on why plain exponential forgetting does).
- Residuals are relative and clipped at a learned scale (Huber 1964), so a pass that was ten times
  too slow because the machine was busy counts like one that was slightly slow.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import mul
from typing import Final, Self, TypeAlias


@dataclass(frozen=True, slots=True)
class StepShape:
    """What is in a pass, as far as its time depends on it. All counts over the whole pass."""

    num_tokens: int  # that enter the pass
    num_context_tokens: (
        int  # KV read: over chunks, the tokens of the sequence up to the chunk's end
    )
    num_attended_tokens: int  # over tokens, how many tokens each one attends to, itself included
    num_sequences: int  # chunks
    num_logits: int  # rows of logits made, one per chunk that samples


Features: TypeAlias = tuple[float, ...]

#: tokens at which the time of one more may change; between two it has a slope of its own
TOKEN_KNOTS: Final = (8, 32, 128, 512)
_SEGMENTS: Final = tuple(pairwise((0, *TOKEN_KNOTS, 2**62)))
NUM_FEATURES: Final = len(_SEGMENTS) + 6
FORGETTING: Final = 0.995  # what an observation weighs after one more: a memory of 200 passes
PRIOR_WEIGHT: Final = 20.0  # passes that the whole calibration weighs, for ever
CLIP_SCALES: Final = 3.0  # mean absolute residuals beyond which a residual is clipped
MIN_SCALE: Final = 0.005  # of relative residuals: clocks and caches alone make as much
GAIN: Final = 0.05  # how fast the scale and the mean errors follow: the last 20 passes
SLOW_QUANTILE: Final = 0.99
SLOW_GAIN: Final = 0.02  # step of the quantile's estimate, in units of predicted time
MIN_STEP_MS: Final = 1e-3  # no pass is predicted to be faster
MAX_STEP_MS: Final = 1e6  # no pass is observed to be slower
FIT_SWEEPS: Final = 2000  # of Gauss-Seidel at most, when all observations are there at once
FIT_TOLERANCE: Final = 1e-9  # a sweep that changes no coefficient by more, relatively, is the last
TINY: Final = 1e-30  # information below this determines nothing

#: shapes at which a model known only by its coefficients pretends to have been observed
_REFERENCE_SHAPES: Final = (
    *(StepShape(n, n * c, n * c, n, n) for n in (1, 4, 16, 64, 256) for c in (16, 256, 2048)),
    *(
        StepShape(n, c + n, n * c + n * (n + 1) // 2, 1, logits)
        for n in (2, 8, 32, 128, 512, 2048)
        for c in (0, 1024)
        for logits in (0, 1)
    ),
)


class CostModel:
    """Step time of one worker as a function of the step's shape.

    The same observations in the same order make the same model, to the last bit.
    """

    __slots__ = (
        "_coefficients",
        "_moments",
        "_normal",
        "_prior_moments",
        "_prior_normal",
        "_scale",
        "bias",
        "num_observations",
        "relative_error",
        "slow_ratio",
    )

    def __init__(self) -> None:
        zeros = [0.0] * NUM_FEATURES
        self._coefficients = list(zeros)  #: ms per unit of each feature, >= 0
        #: over observations, the weighted sum of features times features, [i][j]; symmetric
        self._normal = [list(zeros) for _ in zeros]
        self._moments = list(zeros)  #: over observations, the weighted sum of features times ms
        #: what the two decay towards, times 1 - FORGETTING
        self._prior_normal = [list(zeros) for _ in zeros]
        self._prior_moments = list(zeros)
        self._scale = 1.0  #: exponential mean of clipped |measured / predicted - 1|
        self.num_observations = 0  #: passes learned from, calibration included
        #: exponential mean of |measured - predicted| / predicted; each counts for 1 at most
        self.relative_error = 0.0
        #: the same with its sign; > 0: predictions are too low
        self.bias = 0.0
        #: 99 of 100 passes take at most so many times what was predicted, >= 1
        self.slow_ratio = 1.0

    @classmethod
    def from_observations(cls, observations: Iterable[tuple[StepShape, float]]) -> Self:
        """Fit to the passes of a calibration, which the model will not forget.

        Args:
            observations: shapes and their milliseconds, finite and > 0. None at all gives the
                model that knows nothing.
        """
        model = cls()
        rows = [(_features(shape), ms) for shape, ms in observations]
        if rows:
            model._coefficients[0] = min(ms for _, ms in rows)
            model._settle(rows)
        return model

    @classmethod
    def from_coefficients(cls, coefficients: Sequence[float]) -> Self:
        """The model that predicts with these, and learns on from there.

        Args:
            coefficients: what `to_coefficients` gave.

        Raises:
            ValueError: not so many, or one is negative or not finite, or all are zero.
        """
        if len(coefficients) != NUM_FEATURES:
            raise ValueError(f"{len(coefficients)} coefficients; a cost model has {NUM_FEATURES}")
        if not all(0 <= c < MAX_STEP_MS for c in coefficients) or not any(coefficients):
            raise ValueError(
                f"coefficients must be in [0, {MAX_STEP_MS:g}) and not all 0: {coefficients}"
            )
        model = cls()
        model._coefficients = [float(c) for c in coefficients]
        model._settle([(_features(s), model.predict_ms(s)) for s in _REFERENCE_SHAPES])
        return model

    def to_coefficients(self) -> tuple[float, ...]:
        """Milliseconds per unit of each feature."""
        return tuple(self._coefficients)

    def predict_ms(self, shape: StepShape) -> float:
        """Milliseconds that a pass of this shape is expected to take, > 0."""
        return max(sum(map(mul, self._coefficients, _features(shape))), MIN_STEP_MS)

    def observe(self, shape: StepShape, step_ms: float) -> None:
        """Learn from a pass that took `step_ms` milliseconds on its device."""
        measured = min(max(step_ms, MIN_STEP_MS), MAX_STEP_MS)
        if not self.num_observations:
            self._coefficients[0] = measured
        features = _features(shape)
        predicted = max(sum(map(mul, self._coefficients, features)), MIN_STEP_MS)
        residual = measured / predicted - 1.0
        limit = CLIP_SCALES * self._scale
        clipped = min(max(residual, -limit), limit)
        self._track(residual, clipped)
        self._add(features, predicted * (1.0 + clipped), FORGETTING)
        self._sweep()

    def _track(self, residual: float, clipped: float) -> None:
        """Follow how wrong predictions are."""
        self.num_observations += 1
        self._scale = max(MIN_SCALE, self._scale + GAIN * (abs(clipped) - self._scale))
        bounded = min(residual, 1.0)
        self.relative_error += GAIN * (abs(bounded) - self.relative_error)
        self.bias += GAIN * (bounded - self.bias)
        is_slower = 1.0 + residual > self.slow_ratio
        self.slow_ratio += SLOW_GAIN * (SLOW_QUANTILE if is_slower else SLOW_QUANTILE - 1.0)
        self.slow_ratio = max(self.slow_ratio, 1.0)

    def _add(self, features: Features, ms: float, decay: float) -> None:
        """Take one observation in. Its weight makes residuals relative to its time."""
        weight = 1.0 / (ms * ms)
        moments, prior_moments = self._moments, self._prior_moments
        for index, (row, prior) in enumerate(zip(self._normal, self._prior_normal, strict=True)):
            scaled = weight * features[index]
            row[:] = [
                decay * value + fixed + scaled * feature
                for value, fixed, feature in zip(row, prior, features, strict=True)
            ]
            moments[index] = decay * moments[index] + prior_moments[index] + scaled * ms

    def _sweep(self) -> float:
        """One pass of projected Gauss-Seidel; returns the largest relative change."""
        coefficients, moments, change = self._coefficients, self._moments, 0.0
        for index, row in enumerate(self._normal):
            diagonal = row[index]
            if diagonal <= TINY:
                continue
            before = coefficients[index]
            gradient = moments[index] - sum(map(mul, row, coefficients))
            after = max(0.0, before + gradient / diagonal)
            coefficients[index] = after
            change = max(change, abs(after - before) / (before + TINY))
        return change

    def _settle(self, rows: Sequence[tuple[Features, float]]) -> None:
        """Fit to these, and make them what later observations decay towards."""
        for features, ms in rows:
            self._add(features, ms, 1.0)
        share = PRIOR_WEIGHT / len(rows)
        self._normal = [[share * value for value in row] for row in self._normal]
        self._moments = [share * value for value in self._moments]
        for _ in range(FIT_SWEEPS):
            if self._sweep() <= FIT_TOLERANCE:
                break
        rest = 1.0 - FORGETTING
        self._prior_normal = [[rest * value for value in row] for row in self._normal]
        self._prior_moments = [rest * value for value in self._moments]
        self.num_observations = len(rows)


def _features(shape: StepShape) -> Features:
    """What time is linear in; every one grows with work, or stays."""
    num_tokens = shape.num_tokens
    return (
        1.0,
        *[
            float(min(num_tokens, end) - begin) if num_tokens > begin else 0.0
            for begin, end in _SEGMENTS
        ],
        float(shape.num_context_tokens),
        float(shape.num_attended_tokens),
        float(shape.num_sequences),
        float(shape.num_logits),
        1.0 if shape.num_logits else 0.0,  # the matrix that makes logits is read at all
    )
