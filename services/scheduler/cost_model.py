"""What a forward pass costs: milliseconds from what is in it, learned from the passes that ran.

A pass reads all weights once, multiplies them with every token, reads the KV of each sequence and
compares every token with its context. So its time is close to linear in the features of
`StepShape`, with coefficients that belong to one worker: its device, backend and model. Time over
tokens bends where reading weights no longer hides the arithmetic, so tokens count by segments.

The fit is recursive least squares with forgetting, in its information form: the model keeps the
normal equations of weighted, decaying observations and improves their solution after each. Nothing
is inverted, so nothing drifts over any number of updates, and three things come cheaply:

- Coefficients stay >= 0 (projected Gauss-Seidel), so more work never costs less.
- What was calibrated does not decay with the rest; only its level follows, at the pace of the
  passes that run. So shapes that no longer occur are still predicted, and directions without
  observations do not wind up, as they do under plain exponential forgetting (Parkum, Poulsen and
  Holst 1992, "Recursive forgetting algorithms").
- Residuals are relative, and clipped at a scale that is learned (Huber 1964, "Robust estimation of
  a location parameter"): a pass that took ten times too long because the machine was busy counts
  like one that was a little slow.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp
from operator import mul
from typing import Final, Self, TypeAlias

from common.messages import StepTiming


@dataclass(frozen=True, slots=True)
class StepShape:
    """What is in a pass, as far as its time depends on it. All counts over the whole pass."""

    num_tokens: int  # that enter the pass
    num_context_tokens: int  # KV read: over chunks, tokens of the sequence up to the chunk's end
    num_attended_tokens: int  # over tokens, how many tokens each one attends to, itself included
    num_sequences: int  # chunks
    num_logits: int  # rows of logits made, one per chunk that samples


Features: TypeAlias = tuple[float, ...]

NS_PER_MS: Final = 1e6

#: tokens at which the time of one more may change; between two it has a slope of its own
TOKEN_KNOTS: Final = (16, 32, 128, 512, 2048)
_SEGMENTS: Final = tuple(pairwise((0, *TOKEN_KNOTS, 2**62)))
_SLOPES: Final = slice(1, 1 + len(_SEGMENTS))  # where the features of the segments are
NUM_FEATURES: Final = len(_SEGMENTS) + 6
MEMORY: Final = 200  # passes after which an observation weighs 1/e of a fresh one
DECAY_EVERY: Final = 8  # passes; decaying after each would take as long as all else
FORGETTING: Final = exp(-DECAY_EVERY / MEMORY)
PRIOR_WEIGHT: Final = 20.0  # passes that the whole calibration weighs, for ever
COUPLING: Final = 1e-4  # of a pass: how strongly slopes of neighbouring segments are held together
CLIP_SCALES: Final = 3.0  # mean absolute residuals beyond which a residual is clipped
MIN_SCALE: Final = 0.005  # of relative residuals: clocks and caches alone make as much
GAIN: Final = 0.05  # how fast scale, pace and mean errors follow: the last 20 passes
MIN_STEP_MS: Final = 1e-3  # no pass is predicted to be faster
MAX_STEP_MS: Final = 1e6  # no pass is observed to be slower
MAX_TIMINGS: Final = 1024  # of one worker; more are not looked at
MAX_COUNT: Final = 2**40  # of anything in a pass
FIT_ROUNDS: Final = 4  # of a calibration, each with residuals clipped at the scale of the last
FIT_SWEEPS: Final = 300  # of Gauss-Seidel at most in each round
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
        "_pace",
        "_prior_coefficients",
        "_prior_moments",
        "_prior_normal",
        "_scale",
        "bias",
        "num_observations",
        "relative_error",
    )

    def __init__(self) -> None:
        zeros = [0.0] * NUM_FEATURES
        self._coefficients = list(zeros)  #: ms per unit of each feature, >= 0
        #: over observations, the weighted sum of features times features, [i][j]; symmetric
        self._normal = [list(zeros) for _ in zeros]
        self._moments = list(zeros)  #: over observations, the weighted sum of features times ms
        #: what the two decay towards, the moments times the pace
        self._prior_normal = [list(zeros) for _ in zeros]
        self._prior_moments = list(zeros)
        self._prior_coefficients = list(zeros)  #: those of the calibration
        self._pace = 1.0  #: exponential mean of time, relative to what the calibration predicts
        self._scale = 1.0  #: exponential mean of clipped |measured / predicted - 1|
        self.num_observations = 0  #: passes learned from, calibration included
        #: exponential mean of |measured - predicted| / predicted; each counts for 1 at most
        self.relative_error = 0.0
        #: the same with its sign; > 0: predictions are too low
        self.bias = 0.0

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
    def from_timings(cls, timings: Sequence[StepTiming]) -> Self:
        """Fit to what a worker says that it measured; of passes that cannot be, nothing is used."""
        return cls.from_observations(
            (_shape_of(timing), timing.step_ns / NS_PER_MS)
            for timing in timings[:MAX_TIMINGS]
            if _is_possible(timing)
        )

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
        exact = tuple(map(float, coefficients))
        model._coefficients = list(exact)
        model._settle([(_features(s), model.predict_ms(s)) for s in _REFERENCE_SHAPES])
        # The fit comes close, but coupled slopes and finite sweeps keep it from being equal.
        model._coefficients, model._prior_coefficients = list(exact), list(exact)
        model._moments = [_dot(row, exact) for row in model._normal]
        model._prior_moments = list(model._moments)
        return model

    def to_coefficients(self) -> tuple[float, ...]:
        """Milliseconds per unit of each feature."""
        return tuple(self._coefficients)

    def predict_ms(self, shape: StepShape) -> float:
        """Milliseconds that a pass of this shape is expected to take, > 0."""
        return self._predict(_features(shape))

    def observe(self, shape: StepShape, step_ms: float) -> None:
        """Learn from a pass that took `step_ms` milliseconds on its device."""
        measured = min(max(step_ms, MIN_STEP_MS), MAX_STEP_MS)
        if not self.num_observations:
            self._coefficients[0] = measured
        features = _features(shape)
        predicted = self._predict(features)
        if not self.num_observations:
            self._couple(features, predicted)
            self._prior_normal = [list(row) for row in self._normal]
        residual = measured / predicted - 1.0
        clipped = _clip(residual, self._scale)
        self._track(residual, clipped)
        self._follow_pace(features, predicted * (1.0 + clipped))
        if self.num_observations % DECAY_EVERY == 0:
            self._decay()
        self._add(features, predicted * (1.0 + clipped), predicted)
        self._sweep()

    def _track(self, residual: float, clipped: float) -> None:
        """Follow how wrong predictions are."""
        self.num_observations += 1
        self._scale = max(MIN_SCALE, self._scale + GAIN * (abs(clipped) - self._scale))
        bounded = min(residual, 1.0)
        self.relative_error += GAIN * (abs(bounded) - self.relative_error)
        self.bias += GAIN * (bounded - self.bias)

    def _predict(self, features: Features) -> float:
        return max(_dot(self._coefficients, features), MIN_STEP_MS)

    def _follow_pace(self, features: Features, ms: float) -> None:
        calibrated = _dot(self._prior_coefficients, features)
        if calibrated > 0.0:
            self._pace += GAIN * (ms / calibrated - self._pace)

    def _decay(self) -> None:
        rest = 1.0 - FORGETTING
        for row, prior in zip(self._normal, self._prior_normal, strict=True):
            row[:] = [
                FORGETTING * value + rest * fixed for value, fixed in zip(row, prior, strict=True)
            ]
        rest *= self._pace
        self._moments = [
            FORGETTING * value + rest * fixed
            for value, fixed in zip(self._moments, self._prior_moments, strict=True)
        ]

    def _add(self, features: Features, ms: float, predicted: float) -> None:
        """Take an observation in, weighted so that residuals are relative to what is predicted."""
        weight = 1.0 / (predicted * predicted)
        normal, moments = self._normal, self._moments
        for index, feature in enumerate(features):
            if feature:
                scaled = weight * feature
                row = normal[index]
                row[:] = [v + scaled * f for v, f in zip(row, features, strict=True)]
                moments[index] += scaled * ms

    def _couple(self, features: Features, ms: float) -> None:
        """Let a segment of tokens that no pass reaches go on with the slope of the one before.

        Adds COUPLING of a pass's information about the difference of each two neighbours.
        """
        strength = COUPLING * (sum(features[_SLOPES]) / ms) ** 2
        for index in range(_SLOPES.start, _SLOPES.stop - 1):
            row, after = self._normal[index], self._normal[index + 1]
            row[index] += strength
            row[index + 1] -= strength
            after[index] -= strength
            after[index + 1] += strength

    def _sweep(self) -> float:
        """One pass of projected Gauss-Seidel; returns the largest relative change."""
        coefficients, moments, change = self._coefficients, self._moments, 0.0
        for index, row in enumerate(self._normal):
            diagonal = row[index]
            if diagonal <= TINY:
                continue
            before = coefficients[index]
            gradient = moments[index] - _dot(row, coefficients)
            after = max(0.0, before + gradient / diagonal)
            coefficients[index] = after
            change = max(change, abs(after - before) / (before + TINY))
        return change

    def _settle(self, rows: Sequence[tuple[Features, float]]) -> None:
        """Fit to these, and make them what later observations decay towards."""
        trusted = [ms for _, ms in rows]
        for _ in range(FIT_ROUNDS):
            self._solve(list(zip((features for features, _ in rows), trusted, strict=True)))
            residuals = [ms / self._predict(features) - 1.0 for features, ms in rows]
            scale = max(MIN_SCALE, sorted(map(abs, residuals))[len(rows) // 2])
            trusted = [
                self._predict(features) * (1.0 + _clip(residual, scale))
                for (features, _), residual in zip(rows, residuals, strict=True)
            ]
        self._prior_normal = [list(row) for row in self._normal]
        self._prior_moments = list(self._moments)
        self._prior_coefficients = list(self._coefficients)
        self._scale = scale
        self.num_observations = len(rows)

    def _solve(self, rows: Sequence[tuple[Features, float]]) -> None:
        """The coefficients that fit these alone, together as many passes as PRIOR_WEIGHT."""
        self._normal = [[0.0] * NUM_FEATURES for _ in range(NUM_FEATURES)]
        self._moments = [0.0] * NUM_FEATURES
        for features, ms in rows:
            self._add(features, ms, ms)
            self._couple(features, ms)
        share = PRIOR_WEIGHT / len(rows)
        self._normal = [[share * value for value in row] for row in self._normal]
        self._moments = [share * value for value in self._moments]
        for _ in range(FIT_SWEEPS):
            if self._sweep() <= FIT_TOLERANCE:
                return


def _dot(a: Iterable[float], b: Iterable[float]) -> float:
    return float(sum(map(mul, a, b)))


def _clip(residual: float, scale: float) -> float:
    limit = CLIP_SCALES * scale
    return min(max(residual, -limit), limit)


def timing_of(shape: StepShape, ms: float) -> StepTiming:
    """What a worker says of a pass that took so many milliseconds."""
    return StepTiming(
        num_tokens=shape.num_tokens,
        num_context_tokens=shape.num_context_tokens,
        num_attended_tokens=shape.num_attended_tokens,
        num_sequences=shape.num_sequences,
        num_logits=shape.num_logits,
        step_ns=round(ms * NS_PER_MS),
    )


def _shape_of(timing: StepTiming) -> StepShape:
    return StepShape(
        timing.num_tokens,
        timing.num_context_tokens,
        timing.num_attended_tokens,
        timing.num_sequences,
        timing.num_logits,
    )


def _is_possible(timing: StepTiming) -> bool:
    """Whether a pass can have this shape and time."""
    return (
        0 <= timing.num_logits <= timing.num_sequences <= timing.num_tokens
        and timing.num_sequences >= 1
        and timing.num_tokens <= timing.num_context_tokens <= timing.num_attended_tokens
        and timing.num_attended_tokens <= MAX_COUNT
        and MIN_STEP_MS <= timing.step_ns / NS_PER_MS <= MAX_STEP_MS
    )


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
