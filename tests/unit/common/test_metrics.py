import pytest

from common.metrics import (
    ITL_BUCKETS_S,
    LATENCY_BUCKETS_S,
    TTFT_BUCKETS_S,
    counter,
    exposition,
    gauge,
    histogram,
    length_buckets,
)


def test_metrics_carry_our_prefix_and_the_fields_names() -> None:
    counter("example_requests", "Of a test", ("reason",)).labels("ok").inc(3)
    gauge("example_running", "Of a test").set(7)
    histogram("example_seconds", "Of a test", (0.1, 1.0)).observe(0.5)

    lines = exposition().decode().splitlines()

    assert 'splitfuse:example_requests_total{reason="ok"} 3.0' in lines
    assert "splitfuse:example_running 7.0" in lines
    assert 'splitfuse:example_seconds_bucket{le="1.0"} 1.0' in lines
    assert not [line for line in lines if "_created" in line]


def test_the_process_itself_is_measured() -> None:
    assert b"process_resident_memory_bytes" in exposition()


@pytest.mark.parametrize(
    ("largest", "buckets"),
    [
        (1, (1,)),
        (7, (1, 2, 5, 7)),
        (10, (1, 2, 5, 10)),
        (2048, (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 2048)),
    ],
)
def test_length_buckets_go_up_in_steps_of_1_2_5_to_the_largest(
    largest: int, buckets: tuple[int, ...]
) -> None:
    assert length_buckets(largest) == buckets


@pytest.mark.parametrize("buckets", [TTFT_BUCKETS_S, ITL_BUCKETS_S, LATENCY_BUCKETS_S])
def test_bucket_bounds_rise(buckets: tuple[float, ...]) -> None:
    assert list(buckets) == sorted(set(buckets))
