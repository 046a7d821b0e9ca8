"""How much slower than predicted passes turn out to be, at the 99th percentile."""

from bisect import bisect_left, insort
from collections import deque
from math import ceil

QUANTILE = 0.99
WINDOW = 512  # passes that are looked back at
PRIOR_PASSES = 100  # which the prior counts for: so many, so that one hiccup decides nothing
PRIOR_RATIO = 1.1
MAX_RATIO = 2.0  # what a busy machine adds beyond that, no smaller pass would take away


class SlowRatio:
    """Quantile over a sliding window of measured / predicted."""

    def __init__(self) -> None:
        self._recent = deque([PRIOR_RATIO] * PRIOR_PASSES, maxlen=WINDOW)
        self._sorted = list(self._recent)  #: the same, ascending

    @property
    def value(self) -> float:
        """QUANTILE of passes take at most so many times what was predicted; in [1, MAX_RATIO]."""
        ratio = self._sorted[ceil(QUANTILE * len(self._sorted)) - 1]
        return min(max(ratio, 1.0), MAX_RATIO)

    def observe(self, ratio: float) -> None:
        """Take a pass into account that took `ratio` times what was predicted, >= 0."""
        if len(self._recent) == WINDOW:
            del self._sorted[bisect_left(self._sorted, self._recent[0])]
        self._recent.append(ratio)
        insort(self._sorted, ratio)
