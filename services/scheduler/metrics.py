"""What the scheduler exports, named as vLLM names it, and its line in the log."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

import structlog
from prometheus_client import Counter

from common.metrics import (
    ITL_BUCKETS_S,
    TTFT_BUCKETS_S,
    counter,
    gauge,
    histogram,
    length_buckets,
)
from services.scheduler.stats import SchedulerStats
from services.scheduler.time_account import TimeAccount

LOG_PERIOD_S = 10.0
NS_PER_S = 1e9
MS_PER_S = 1e3
OTHER_TENANTS = "other"

NUM_RUNNING = gauge("num_requests_running", "Requests that hold KV blocks")
NUM_WAITING = gauge("num_requests_waiting", "Requests that wait for their turn")
KV_USAGE = gauge("kv_cache_usage_perc", "KV blocks held by requests, 1 = all")
NUM_QUEUED_TOKENS = gauge("num_queued_tokens", "Tokens of requests that wait")
NUM_WORKERS = gauge("num_workers", "Workers attached to this scheduler")
STEP_TOKENS = histogram("iteration_tokens_total", "Tokens per step", length_buckets(16384))
STEP_TIME = histogram("step_time_seconds", "Time of a step on its device", ITL_BUCKETS_S)
QUEUE_TIME = histogram(
    "request_queue_time_seconds", "Wait of a request for its first step", TTFT_BUCKETS_S
)
TOKEN_BUDGET = gauge("token_budget", "Tokens per step that no target limits, least of all workers")
STEP_TIME_ERROR = gauge(
    "step_time_relative_error", "Mean of |measured / predicted - 1| of step times, worst worker"
)
SLOW_RATIO = gauge(
    "step_time_slow_ratio", "Measured / predicted at P99, by which targets are divided"
)
TENANT_TIME = counter(
    "tenant_device_seconds",
    "Device time by tenant; a tenant is named by a hash, those that use little are `other`",
    ("tenant",),
)
GAVE_WAY = counter(
    "target_gave_way_steps",
    "Steps that exceed a target for the time between tokens (tbt), or in which for its sake no "
    "prompt started (ttft)",
    ("target",),
)
MISSED = counter(
    "target_missed", "Steps whose tokens (tbt), and first tokens (ttft), came late", ("target",)
)
SUCCESSES = counter(
    "scheduler_requests_finished", "Requests that ended as they should", ("finished_reason",)
)

#: field of `SchedulerStats` -> what it is exported as
COUNTERS: dict[str, Counter] = {
    "num_steps": counter("num_steps", "Steps sent to workers"),
    "num_prompt_tokens": counter("prompt_tokens", "Prompt tokens in steps sent"),
    "num_output_tokens": counter("generation_tokens", "Tokens sampled by workers"),
    "num_preemptions": counter("num_preemptions", "Requests that lost their KV to others"),
    "num_cache_query_tokens": counter("prefix_cache_queries", "Prompt tokens looked up"),
    "num_cache_hit_tokens": counter("prefix_cache_hits", "Prompt tokens found"),
    "num_backlog_steps": counter("backlog_steps", "Steps that left prompt tokens behind"),
    "num_full_backlog_steps": counter("full_backlog_steps", "Those that carried the whole budget"),
    "num_tbt_gave_way_steps": GAVE_WAY.labels("tbt"),
    "num_ttft_gave_way_steps": GAVE_WAY.labels("ttft"),
    "num_late_steps": MISSED.labels("tbt"),
    "num_late_first_tokens": MISSED.labels("ttft"),
    "num_refused_steps": counter("refused_steps", "Steps that workers could not resolve"),
    "num_lost_workers": counter("lost_workers", "Workers lost while attached"),
    "num_ignored_results": counter("ignored_results", "Results of steps not in flight"),
    "num_stopped": SUCCESSES.labels("stop"),
    "num_length": SUCCESSES.labels("length"),
    "num_cancelled": SUCCESSES.labels("abort"),
    "num_failed": SUCCESSES.labels("error"),
}

logger = structlog.get_logger(__name__)


def tenant_label(tenant: str) -> str:
    """What a tenant is called outside: its name may be a secret."""
    return blake2b(tenant.encode(), digest_size=4).hexdigest() if tenant else "none"


class SchedulerMetrics:
    """Carries the core's counters over to Prometheus once per tick.

    Args:
        now: seconds, on the clock that `tick` is given.
    """

    def __init__(self, now: float) -> None:
        self._exported = dict.fromkeys(COUNTERS, 0)
        #: milliseconds by label
        self._exported_ms: dict[str, float] = {}
        self._logged = SchedulerStats()
        self._logged_at = now

    def step_sent(self, num_tokens: int, queue_times_s: Sequence[float]) -> None:
        if num_tokens:
            STEP_TOKENS.observe(num_tokens)
        for seconds in queue_times_s:
            QUEUE_TIME.observe(seconds)

    def step_finished(self, step_ns: int) -> None:
        STEP_TIME.observe(max(0, step_ns) / NS_PER_S)

    def tick(self, stats: SchedulerStats, account: TimeAccount, now: float) -> None:
        """Export; once per LOG_PERIOD_S, unless nothing happened, also write a line."""
        self._export_tenants(account)
        TOKEN_BUDGET.set(stats.token_budget)
        STEP_TIME_ERROR.set(stats.step_time_error)
        SLOW_RATIO.set(stats.slow_ratio)
        NUM_RUNNING.set(stats.num_running)
        NUM_WAITING.set(stats.num_waiting)
        NUM_QUEUED_TOKENS.set(stats.num_queued_tokens)
        KV_USAGE.set(stats.kv_usage)
        NUM_WORKERS.set(stats.num_workers)
        for name, exported in COUNTERS.items():
            value = getattr(stats, name)
            exported.inc(value - self._exported[name])
            self._exported[name] = value
        if now - self._logged_at >= LOG_PERIOD_S:
            self._log(stats, now - self._logged_at)
            self._logged, self._logged_at = replace(stats), now

    def _export_tenants(self, account: TimeAccount) -> None:
        """Bring the counters up to date; of a tenant that has lost its name, remove it."""
        times = {tenant_label(tenant): ms for tenant, ms in account.by_tenant.items()}
        times[OTHER_TENANTS] = account.others_ms
        for label in self._exported_ms.keys() - times.keys():
            TENANT_TIME.remove(label)
            del self._exported_ms[label]
        for label, ms in times.items():
            before = self._exported_ms.get(label, 0.0)
            more_ms = ms - before if ms >= before else ms  # less: it lost its name in between
            TENANT_TIME.labels(label).inc(more_ms / MS_PER_S)
            self._exported_ms[label] = ms

    def _log(self, stats: SchedulerStats, elapsed_s: float) -> None:
        before = self._logged
        if stats.num_steps == before.num_steps and not stats.num_running + stats.num_waiting:
            return
        queried = stats.num_cache_query_tokens - before.num_cache_query_tokens
        hits = stats.num_cache_hit_tokens - before.num_cache_hit_tokens
        logger.info(
            "throughput",
            prompt_per_s=round((stats.num_prompt_tokens - before.num_prompt_tokens) / elapsed_s, 1),
            output_per_s=round((stats.num_output_tokens - before.num_output_tokens) / elapsed_s, 1),
            running=stats.num_running,
            waiting=stats.num_waiting,
            kv_usage=round(stats.kv_usage, 3),
            prefix_cache_hit_rate=round(hits / queried, 3) if queried else 0.0,
        )
