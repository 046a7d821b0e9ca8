"""How long outputs turn out to be: what admission expects of a request that has just come."""

from math import sqrt

MIN_WEIGHT = 1 / 32  # of the newest observation; the first ones count for more, as in a mean
# Stands for one observation, before the first. Optimistic on purpose: a wrong guess costs a
# preemption, while a pessimistic one would keep the memory of a fresh scheduler half empty.
INITIAL_TOKENS = 16.0


class OutputLengths:
    """Exponential moving average and deviation of the number of output tokens."""

    def __init__(self) -> None:
        self._mean = INITIAL_TOKENS
        self._variance = 0.0
        self._num_observations = 1

    @property
    def mean(self) -> int:
        """Tokens of an output, on average."""
        return int(self._mean)

    @property
    def expected(self) -> int:
        """Tokens that few outputs exceed: the mean and two deviations."""
        return int(self._mean + 2 * sqrt(self._variance))

    def observe(self, num_output_tokens: int) -> None:
        """Learn from an output that has come to its end."""
        self._num_observations += 1
        weight = max(MIN_WEIGHT, 1 / self._num_observations)
        delta = num_output_tokens - self._mean
        self._mean += weight * delta
        self._variance = (1 - weight) * (self._variance + weight * delta * delta)
