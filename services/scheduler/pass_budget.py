"""How large the next pass of a worker may be: in tokens, and in milliseconds where that counts.

A running stream is in every pass, so the time between two of its tokens is the time of the pass
that the later one comes from. A target for it (P99) is therefore a limit for each pass:

    predicted time of the pass * slow ratio <= the tightest target among its streams

The slow ratio is taken between results as they come, not on the device, so what lies between passes
counts as well; and over passes with prompts, since only their size is chosen. Under a target passes
are as large as throughput gains from; while prompts wait to start, as large as the target allows:
streams have the time, and first tokens need it. Without targets a pass has the size of the knee, or
on a CPU the smallest one with nearly all of the throughput; see `knee`. On a CPU a pass without
decodes is larger: it keeps no stream waiting.

Which target gives way when both cannot be met: the one for the first token. While decodes leave no
time for a tile of prompt tokens, no further prompt starts. But a prompt that has started gets a
tile of every pass whatever the target, so P tokens take at most P / MIN_PROMPT_TOKENS passes; and
where not even one decode and a tile are within the target, nothing can keep it, and it does not
keep prompts from starting.
"""

from dataclasses import dataclass
from math import inf

from services.scheduler.cost_model import CostModel, StepShape
from services.scheduler.knee import (
    LARGE_SIZES,
    SIZES,
    TYPICAL_CONTEXT,
    cpu_tokens,
    knee_tokens,
    saturating_tokens,
)
from services.scheduler.slow_ratio import SlowRatio
from services.scheduler.splitfuse import TILE
from services.scheduler.work import EMPTY, chunk_shape, plus

MIN_PROMPT_TOKENS = TILE
CPU_TOKEN_BUDGET = 128  # more per pass gain a CPU 3 %, and double the gap between tokens
CPU_ALONE_TOKENS = 512  # of a pass that no stream waits for: fewer wakes of services for a prompt
GPU_TOKEN_BUDGET = 2048
MIN_OBSERVATIONS = 64  # passes after which a model that was not calibrated is believed

_SMALLEST = plus(
    chunk_shape(TYPICAL_CONTEXT, 1, sample=True), chunk_shape(TYPICAL_CONTEXT, MIN_PROMPT_TOKENS)
)


@dataclass(frozen=True, slots=True)
class PassLimit:
    """What one pass may hold."""

    tokens: int
    ms: float  # predicted; infinite if no stream of the pass has a target


class PassBudget:
    """The budget of one worker's passes, learned from those that it ran.

    Args:
        on_cpu: kind of the worker's device.
        fixed_tokens: tokens per pass that are not to be questioned; None: they are found.
        target_ms: time between tokens, P99, of all streams; None: only single requests have one.
        model: of the worker, calibrated or not; learns on.
    """

    def __init__(
        self,
        *,
        on_cpu: bool,
        fixed_tokens: int | None,
        target_ms: float | None,
        model: CostModel,
    ) -> None:
        self.model = model
        self.slow_ratio = SlowRatio()
        self._on_cpu = on_cpu
        self._fixed_tokens = fixed_tokens
        self._target_ms = target_ms
        self._is_calibrated = model.num_observations > 0
        #: tokens per pass before anything is known
        self.initial_tokens = fixed_tokens or (CPU_TOKEN_BUDGET if on_cpu else GPU_TOKEN_BUDGET)
        #: tokens per pass as far as no stream's target limits it
        self.tokens = self.initial_tokens
        #: tokens per pass that raise throughput; more only bring first tokens earlier
        self.saturating_tokens = self.tokens
        #: tokens per pass that a prompt is predicted with: within the target for all streams
        self.prompt_tokens = self.tokens
        if self._is_calibrated:
            self._find_sizes()
        self.refresh()

    @property
    def is_known(self) -> bool:
        """Whether predictions are worth anything."""
        return self._is_calibrated or self.model.num_observations >= MIN_OBSERVATIONS

    def refresh(self) -> None:
        """Look again at what was learned; worth it about once a second.

        The sizes of a calibrated worker stay as the calibration has them: passes that run are of
        few sizes, so the curve they teach is flat where none of them lies, and its bends noise.
        """
        if not self.is_known:
            return
        if not self._is_calibrated:
            self._find_sizes()
        self.prompt_tokens = self.tokens
        if self._target_ms is not None:
            limit_ms = self._target_ms / self.slow_ratio.value
            within = self.tokens_within(EMPTY, TYPICAL_CONTEXT, self.tokens, limit_ms)
            self.prompt_tokens = max(MIN_PROMPT_TOKENS, within)

    def _find_sizes(self) -> None:
        if self._fixed_tokens is None:
            self.tokens = cpu_tokens(self.model) if self._on_cpu else knee_tokens(self.model)
            larger = saturating_tokens(self.model, SIZES if self._on_cpu else LARGE_SIZES)
            self.saturating_tokens = max(self.tokens, larger)

    def limit(self, num_decodes: int, tightest_ms: float, *, prompts_wait: bool) -> PassLimit:
        """What a pass may hold.

        Args:
            num_decodes: in it already; they are not questioned.
            tightest_ms: smallest target of its streams; infinite if none has one.
            prompts_wait: beside those that have started.
        """
        if self._fixed_tokens is not None:
            tokens = self._fixed_tokens
        elif num_decodes or not self._on_cpu:
            tokens = max(self.tokens, num_decodes + MIN_PROMPT_TOKENS)
        else:
            tokens = max(self.tokens, CPU_ALONE_TOKENS)
        if tightest_ms == inf or not self.is_known:
            return PassLimit(tokens, inf)
        if self._target_ms is not None and self._fixed_tokens is None:
            tokens = max(tokens, LARGE_SIZES[-1] if prompts_wait else self.saturating_tokens)
        return PassLimit(tokens, tightest_ms / self.slow_ratio.value)

    def can_keep(self, limit_ms: float) -> bool:
        """Whether the smallest pass of a stream and a prompt is within the limit."""
        return self.model.predict_ms(_SMALLEST) <= limit_ms

    def tokens_within(self, shape: StepShape, start: int, wanted: int, limit_ms: float) -> int:
        """How many tokens of a prompt a pass can take more.

        Args:
            shape: what is in the pass already.
            start: tokens of the prompt that are computed.
            wanted: > 0.
            limit_ms: of the whole pass.

        Returns:
            `wanted`, if that is within the limit; else the largest multiple of TILE that is, or 0.
        """
        predict_ms = self.model.predict_ms
        if predict_ms(plus(shape, chunk_shape(start, wanted, sample=True))) <= limit_ms:
            return wanted
        low, high = 0, -(-wanted // TILE)  # tiles that are within it, or none, and that are not
        while high - low > 1:
            middle = (low + high) // 2
            fits = predict_ms(plus(shape, chunk_shape(start, middle * TILE))) <= limit_ms
            low, high = (middle, high) if fits else (low, middle)
        return low * TILE

    def observe(
        self, shape: StepShape, *, predicted_ms: float, device_ms: float, elapsed_ms: float
    ) -> None:
        """Learn from a pass that ran.

        Args:
            shape: what was in it.
            predicted_ms: when it was planned; its slow ratio is what streams saw of it.
            device_ms: on the device, > 0.
            elapsed_ms: since the result before it, or since it was sent if it was sent later.
        """
        if self.is_known and shape.num_tokens > shape.num_logits:
            self.slow_ratio.observe(elapsed_ms / predicted_ms)
        self.model.observe(shape, device_ms)
