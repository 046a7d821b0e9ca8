"""Names, buckets and the registry of every Prometheus metric.

Metrics are module constants of the file that counts, so each exists once per process. They are
named as vLLM names its own, with our prefix: `counter("num_preemptions", ...)` is scraped as
`splitfuse:num_preemptions_total`.
"""

from collections.abc import Sequence

from prometheus_client import (
    REGISTRY,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

PREFIX = "splitfuse:"

# Seconds. The first token of a warm small model comes within milliseconds, that of a long queue
# within minutes.
TTFT_BUCKETS_S = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_BUCKETS_S = (
    *(0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0),
)
LATENCY_BUCKETS_S = (
    *(0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0),
    *(60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)

disable_created_metrics()  # type: ignore[no-untyped-call]


def length_buckets(largest: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50, ... up to and including `largest` (>= 1)."""
    steps = (mantissa * 10**power for power in range(len(str(largest))) for mantissa in (1, 2, 5))
    return (*(step for step in steps if step < largest), largest)


def counter(name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
    """A count that only grows; `_total` is appended to its name."""
    return Counter(PREFIX + name, documentation, labels)


def gauge(name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
    """A value that goes up and down."""
    return Gauge(PREFIX + name, documentation, labels)


def histogram(
    name: str, documentation: str, buckets: Sequence[float], labels: Sequence[str] = ()
) -> Histogram:
    """A distribution; `buckets` are upper bounds in the unit that ends the name."""
    return Histogram(PREFIX + name, documentation, labels, buckets=tuple(buckets))


def exposition() -> bytes:
    """All metrics of this process in Prometheus' text format, with its CPU, memory and fds."""
    return generate_latest(REGISTRY)
