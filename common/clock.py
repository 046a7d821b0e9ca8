"""Time as an argument: whoever needs the time is given a `Clock`, so that tests can give theirs."""

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since some fixed moment; never goes back."""

    def now(self) -> float: ...


class MonotonicClock:
    """The clock of this machine; goes on while the process is stopped."""

    def now(self) -> float:
        return time.monotonic()
