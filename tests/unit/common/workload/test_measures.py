"""Measures against numbers worked out by hand, and against their definitions written out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.workload.measures import (
    Percentiles,
    Sla,
    exponential_means,
    percentile,
    summarize,
)
from common.workload.timeline import RequestShape, Timeline


def timeline(
    sent_at: float, token_at: list[float], *, prompt: int = 100, failure: str | None = None
) -> Timeline:
    shape = RequestShape(num_prompt_tokens=prompt, num_output_tokens=len(token_at))
    return Timeline(shape, sent_at, token_at, len(token_at), failure)


def test_a_percentile_lies_between_its_neighbours() -> None:
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.5
    assert percentile([0.0, 10.0], 0.99) == pytest.approx(9.9)


def test_percentiles_of_nothing_are_none() -> None:
    assert Percentiles.of([]) is None


def test_two_requests_that_overlap_are_counted_by_the_wall_clock() -> None:
    first = timeline(10.0, [10.5, 10.6, 10.7], prompt=30)
    second = timeline(10.2, [11.2, 11.4, 12.0], prompt=50)

    summary = summarize([second, first], num_clients=2)

    assert summary.duration_s == pytest.approx(2.0)  # 10.0 to 12.0
    assert summary.requests_per_s == pytest.approx(1.0)
    assert summary.output_tokens_per_s == pytest.approx(3.0)
    assert summary.total_tokens_per_s == pytest.approx(43.0)
    assert summary.ttft_s is not None
    assert summary.tbt_s is not None
    assert summary.tpot_s is not None
    assert summary.latency_s is not None
    assert summary.ttft_s.p50 == pytest.approx(0.75)  # of 0.5 and 1.0
    assert summary.tbt_s.p50 == pytest.approx(0.15)  # of 0.1, 0.1, 0.2 and 0.6
    assert summary.tbt_s.max == pytest.approx(0.6)
    assert summary.tpot_s.mean == pytest.approx(0.25)  # of 0.1 and 0.4
    assert summary.latency_s.mean == pytest.approx(1.25)  # of 0.7 and 1.8
    assert summary.clients_per_latency == pytest.approx(1.6)  # 2 / 1.25


def test_a_failed_request_lowers_goodput_and_no_latency() -> None:
    good = timeline(0.0, [0.1, 0.2])
    broken = timeline(0.0, [0.1, 9.0], failure="the stream ended early")
    silent = timeline(0.0, [])

    summary = summarize([good, broken, silent], [Sla(4.0)])

    assert (summary.num_requests, summary.num_failed) == (3, 2)
    assert summary.latency_s is not None
    assert summary.latency_s.max == pytest.approx(0.2)
    (goodput,) = summary.goodput
    assert goodput.share == pytest.approx(1 / 3)
    assert goodput.requests_per_s == pytest.approx(5.0)  # 1 in 0.2 s


def test_a_load_of_which_nothing_came_back_has_no_latencies() -> None:
    summary = summarize([timeline(0.0, [], failure="refused")], num_clients=1)

    assert summary.ttft_s is None
    assert summary.clients_per_latency is None
    assert summary.requests_per_s == 0.0
    assert [goodput.share for goodput in summary.goodput] == [0.0, 0.0, 0.0]


def test_tokens_that_come_together_are_one_piece() -> None:
    double = timeline(0.0, [1.0, 2.0])
    double.num_output_tokens = 4

    assert summarize([double]).tokens_per_piece == 2.0


@pytest.mark.parametrize(("ttft_s", "is_met"), [(1.0, True), (1.001, False)])
def test_the_first_token_may_take_prompt_tokens_over_512_seconds(
    ttft_s: float, is_met: bool
) -> None:
    assert Sla(4.0).is_met(timeline(0.0, [ttft_s], prompt=512)) is is_met


def test_one_long_gap_among_short_ones_is_forgiven_and_a_first_one_is_not() -> None:
    sla = Sla(4.0)  # gaps below 0.25 s on average
    at_first = timeline(0.0, [0.1, 0.4, 0.45, 0.5])
    # 16 gaps of 20 ms, then one of 1 s: its weight is 1 / (sum of (15/17) ** age) = 1 / 7.5
    late = timeline(0.0, [0.1 + 0.02 * i for i in range(17)] + [1.42])

    assert not sla.is_met(at_first)
    assert sla.is_met(late)
    assert not Sla(8.0).is_met(late)  # (1 + 6.5 * 0.02) / 7.5 is 0.15 s, over 1/8


def test_a_scaled_promise_allows_so_many_times_longer() -> None:
    request = timeline(0.0, [0.4, 0.8, 1.2], prompt=100)  # 100/512 = 0.195 s for the first token

    assert not Sla(4.0).is_met(request)
    assert not Sla(4.0).scaled(2).is_met(request)  # 0.39 s
    assert Sla(4.0).scaled(2.1).is_met(request)  # 0.41 s, gaps below 0.53 s


def test_exponential_means_are_those_of_pandas() -> None:
    # pandas 2: Series([1, 2, 4]).ewm(span=3).mean(), whose decay is 1/2
    assert exponential_means([1.0, 2.0, 4.0], 3) == pytest.approx([1.0, 5 / 3, 3.0])


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=40),
    st.integers(min_value=1, max_value=30),
)
def test_exponential_means_are_their_definition(values: list[float], span: int) -> None:
    decay = 1 - 2 / (span + 1)
    for index, mean in enumerate(exponential_means(values, span)):
        weights = [decay**age for age in range(index, -1, -1)]
        weighted = sum(w * v for w, v in zip(weights, values[: index + 1], strict=True))
        assert mean == pytest.approx(weighted / sum(weights), abs=1e-9)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60))
def test_percentiles_ascend_within_the_values(values: list[float]) -> None:
    found = Percentiles.of(values)

    assert found is not None
    assert min(values) <= found.p50 <= found.p90 <= found.p95 <= found.p99 <= found.max
    assert found.max == max(values)
