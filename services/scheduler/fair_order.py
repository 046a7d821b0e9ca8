"""Who comes first: prompts by the slack of their deadline, tenants by the time they have had.

Every request gets a key when it arrives and keeps it; lower keys go first:

    key = start tag + slack / number of active tenants
    start tag = the later of the virtual time and the end of what its tenant has asked for before
    slack = time to its first token that it was promised - predicted time of its prompt, >= 0

The tenant's end moves on by the predicted device time of the request, so whoever asks for much
queues behind himself, not before others. The virtual time goes to the start tag of each request
that starts, and at least by its device time over the number of active tenants: it is how far a
tenant has got that always had its share (start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM
1996). With one tenant it is device time, and the key a deadline less the time the prompt takes.

No starvation: what arrives when the virtual time has passed a request's key comes after it, and
each start moves the virtual time by 1 / N of its device time, for N active tenants. So what
overtakes a request although it came later is worth at most 2 N (key - virtual time when it came) +
(N + 1) c in device time, where N is the most tenants active at a time and c the dearest of their
requests. That lead is what its own tenant has queued before it, plus its slack. Lower priorities
wait for higher ones without bound, as in vLLM.

All times in seconds on the devices.
"""

from dataclasses import dataclass

MAX_IDLE_TENANTS = 1024  # whose debts are remembered while others are busy
MAX_SLACK_S = 60.0


@dataclass(slots=True)
class Tenant:
    """One that has requests."""

    end: float  #: start tag of its next request, unless the virtual time is later
    num_requests: int = 0  #: that have not ended, > 0


class FairOrder:
    """The virtual time, and the tenants that are, or were lately, ahead of it."""

    def __init__(self) -> None:
        self._now = 0.0
        self._active: dict[str, Tenant] = {}
        #: ends of tenants without requests, the one idle for longest first
        self._idle: dict[str, float] = {}

    @property
    def virtual_time(self) -> float:
        """How far a tenant has got that always had its share."""
        return self._now

    @property
    def num_tenants(self) -> int:
        """Tenants that something is remembered of."""
        return len(self._active) + len(self._idle)

    def arrive(self, tenant: str, cost_s: float, slack_s: float) -> tuple[float, float]:
        """A request comes.

        Args:
            cost_s: predicted device time of all of it, >= 0.
            slack_s: see the module docstring; what is beyond [0, MAX_SLACK_S] is cut off.

        Returns:
            Its start tag and its key.
        """
        account = self._active.get(tenant)
        if account is None:
            account = self._active[tenant] = Tenant(self._idle.pop(tenant, 0.0))
        account.num_requests += 1
        start_tag = max(self._now, account.end)
        account.end = start_tag + cost_s
        slack = min(max(slack_s, 0.0), MAX_SLACK_S)
        return start_tag, start_tag + slack / len(self._active)

    def start(self, start_tag: float, cost_s: float) -> None:
        """A request that has not ended starts for the first time: the virtual time goes on."""
        self._now = max(self._now + cost_s / len(self._active), start_tag)

    def end(self, tenant: str, correction_s: float) -> None:
        """A request ends.

        Args:
            correction_s: what it cost more than was predicted; < 0 if less.
        """
        account = self._active[tenant]
        account.end += correction_s
        account.num_requests -= 1
        if not account.num_requests:
            del self._active[tenant]
            self._remember(tenant, account.end)

    def _remember(self, tenant: str, end: float) -> None:
        """Keep the debt of a tenant that has become idle, as long as others are busy."""
        if not self._active:
            self._idle.clear()
            self._now = 0.0
        elif end > self._now:
            self._idle[tenant] = end
            if len(self._idle) > MAX_IDLE_TENANTS:
                del self._idle[next(iter(self._idle))]
