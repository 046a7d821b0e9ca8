"""Whose processor time a measurement took: the server's, the client's, or somebody else's."""

import os
import time
from dataclasses import dataclass

import psutil

from splitfuse.bench.process_tree import ProcessTree


@dataclass(frozen=True, slots=True)
class ProcessorShares:
    """Shares of the time of the cores that this process may use, 0..1."""

    client: float
    server: float | None  #: None if it is not a process of ours
    #: neither client nor (known) server; clocks of processes and of cores tick apart, so it may
    #: come out a little below 0
    others: float


class ProcessorClock:
    """Reads the clocks now; `shares` says what has been used since.

    Args:
        server: all processes of the server, if they run here and are ours.
    """

    def __init__(self, server: ProcessTree | None) -> None:
        self._server = server
        self._at, self._own_s, self._server_s, self._busy_s = self._read()

    def shares(self) -> ProcessorShares:
        """Since this object was made."""
        at, own_s, server_s, busy_s = self._read()
        available_s = max(at - self._at, 1e-9) * len(os.sched_getaffinity(0))
        client = (own_s - self._own_s) / available_s
        server = (server_s - self._server_s) / available_s
        return ProcessorShares(
            client=client,
            server=None if self._server is None else server,
            others=(busy_s - self._busy_s) / available_s - client - server,
        )

    def _read(self) -> tuple[float, float, float, float]:
        per_core = psutil.cpu_times(percpu=True)
        return (
            time.monotonic(),
            time.process_time(),
            0.0 if self._server is None else self._server.cpu_s(),
            sum(busy_seconds(per_core[core]._asdict()) for core in os.sched_getaffinity(0)),
        )


def busy_seconds(times: dict[str, float]) -> float:
    """Of one core; what a hypervisor stole counts, what guests used is counted in `user`."""
    idle = ("idle", "iowait", "guest", "guest_nice")
    return sum(seconds for name, seconds in times.items() if name not in idle)
