"""Where randomness comes from: whoever owns a seed hands in a `random.Random`."""

from typing import Protocol


class Draw(Protocol):
    """What loads need of `random.Random`; pure files take it, they make none."""

    def randint(self, a: int, b: int, /) -> int: ...

    def uniform(self, a: float, b: float, /) -> float: ...

    def normalvariate(self, mu: float, sigma: float, /) -> float: ...

    def gammavariate(self, alpha: float, beta: float, /) -> float: ...
