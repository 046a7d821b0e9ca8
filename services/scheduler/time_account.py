"""Device time by tenant: who used the workers, in milliseconds.

The time of a step is split over the tenants in it by what the pass would have been shorter without
each of them. A fixed number of tenants is accounted for by name; when there are more, the one
with the least time makes room and its time goes to all others together. So nothing is lost, memory
is bounded, and whoever uses much is known by name.
"""

from collections.abc import Mapping

from services.scheduler.cost_model import CostModel, StepShape
from services.scheduler.work import minus

MAX_NAMED_TENANTS = 32


class TimeAccount:
    """Milliseconds of device time since start."""

    def __init__(self) -> None:
        #: by tenant, at most MAX_NAMED_TENANTS of them
        self.by_tenant: dict[str, float] = {}
        self.others_ms = 0.0  #: of all tenants that are not named, or were not at that time

    def charge(self, tenant: str, device_ms: float) -> None:
        """Add device time to a tenant's account."""
        named = self.by_tenant
        if tenant not in named and len(named) >= MAX_NAMED_TENANTS:
            least = min(named, key=named.__getitem__)
            self.others_ms += named.pop(least)
        named[tenant] = named.get(tenant, 0.0) + device_ms


def shares(
    parts: Mapping[str, StepShape], whole: StepShape, model: CostModel
) -> tuple[tuple[str, float], ...]:
    """Each tenant's share of a pass.

    Args:
        parts: what each tenant has in the pass, at least one token.
        whole: their sum.
        model: of the worker.

    Returns:
        Tenants with shares >= 0 that add up to 1; nothing for an empty pass.
    """
    if len(parts) < 2:
        return tuple((tenant, 1.0) for tenant in parts)
    all_ms = model.predict_ms(whole)
    saved = {t: all_ms - model.predict_ms(minus(whole, part)) for t, part in parts.items()}
    if min(saved.values()) < 0 or not sum(saved.values()) > 0:
        saved = {tenant: float(part.num_tokens) for tenant, part in parts.items()}
    total = sum(saved.values())
    return tuple((tenant, ms / total) for tenant, ms in saved.items())
