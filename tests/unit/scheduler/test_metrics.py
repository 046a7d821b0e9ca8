"""What Prometheus sees of the core."""

from prometheus_client import REGISTRY

from services.scheduler.metrics import OTHER_TENANTS, SchedulerMetrics, tenant_label
from services.scheduler.stats import SchedulerStats
from services.scheduler.time_account import MAX_NAMED_TENANTS, TimeAccount


def seconds_of(label: str) -> float | None:
    return REGISTRY.get_sample_value("splitfuse:tenant_device_seconds_total", {"tenant": label})


def missed(target: str) -> float:
    value = REGISTRY.get_sample_value("splitfuse:target_missed_total", {"target": target})
    return value or 0.0


def test_a_tenants_time_is_exported_under_a_hash_of_its_name() -> None:
    metrics, account = SchedulerMetrics(0.0), TimeAccount()
    account.charge("sk-secret-salt", 1500.0)
    metrics.tick(SchedulerStats(), account, 1.0)
    account.charge("sk-secret-salt", 500.0)
    metrics.tick(SchedulerStats(), account, 2.0)

    label = tenant_label("sk-secret-salt")
    assert seconds_of(label) == 2.0
    assert (len(label), "secret" in label) == (8, False)


def test_a_tenant_that_lost_its_name_is_exported_no_longer_and_its_time_is_others() -> None:
    metrics, account = SchedulerMetrics(0.0), TimeAccount()
    account.charge("small", 1.0)
    metrics.tick(SchedulerStats(), account, 1.0)
    others = seconds_of(OTHER_TENANTS) or 0.0
    for number in range(MAX_NAMED_TENANTS):
        account.charge(f"large {number}", 1000.0)
    metrics.tick(SchedulerStats(), account, 2.0)

    assert seconds_of(tenant_label("small")) is None
    assert (seconds_of(OTHER_TENANTS) or 0.0) - others == 0.001


def test_who_has_no_name_is_called_none() -> None:
    assert tenant_label("") == "none"


def test_targets_that_were_missed_are_counted() -> None:
    before = missed("ttft"), missed("tbt")
    stats = SchedulerStats(num_late_first_tokens=3, num_late_steps=2)
    SchedulerMetrics(0.0).tick(stats, TimeAccount(), 1.0)

    assert (missed("ttft") - before[0], missed("tbt") - before[1]) == (3, 2)
