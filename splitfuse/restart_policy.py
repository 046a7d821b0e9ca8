"""Pure: what to do when a service has ended that should not have."""

from dataclasses import dataclass
from typing import TypeAlias

from common.config import EXIT_CONFIG

EXIT_CANNOT_START = 3
FIRST_DELAY_S = 0.25
LONGEST_DELAY_S = 10.0
HEALTHY_AFTER_S = 60.0
FIRST_START_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Restart:
    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The mesh cannot work; `exit_code` is the supervisor's."""

    exit_code: int
    reason: str


Verdict: TypeAlias = Restart | GiveUp


class RestartPolicy:
    """Of one service: restart it, ever later, but do not hide that it never worked.

    Until the mesh has been ready once, a service that says that it cannot start (or crashes
    `FIRST_START_ATTEMPTS` times) ends the mesh: waiting would not help. Afterwards it is always
    restarted: what worked once may work again.
    """

    def __init__(self) -> None:
        self._num_failures = 0  # since it was last up for HEALTHY_AFTER_S

    def ended(self, exit_code: int, uptime_s: float, *, mesh_was_ready: bool) -> Verdict:
        """The service ended with `exit_code` (negative: by that signal) after `uptime_s`."""
        if uptime_s >= HEALTHY_AFTER_S:
            self._num_failures = 0
        self._num_failures += 1
        if not mesh_was_ready:
            if exit_code in (EXIT_CONFIG, EXIT_CANNOT_START):
                return GiveUp(exit_code, f"cannot start ({describe_exit(exit_code)})")
            if self._num_failures >= FIRST_START_ATTEMPTS:
                reason = f"failed {self._num_failures} times ({describe_exit(exit_code)})"
                return GiveUp(EXIT_CANNOT_START, reason)
        delay_s = FIRST_DELAY_S * 2.0 ** min(self._num_failures - 1, 10)
        return Restart(min(delay_s, LONGEST_DELAY_S))


def describe_exit(exit_code: int) -> str:
    """In words for a log line."""
    return f"killed by signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
