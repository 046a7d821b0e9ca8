import pytest

from benchmarks.peers.closed_loop import busy_seconds
from benchmarks.peers.machine import best_precision, field_of
from benchmarks.peers.measures import measure, percentile
from benchmarks.peers.sse_client import Answer


def test_a_percentile_lies_between_its_neighbours() -> None:
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.5
    assert percentile([0.0, 10.0], 0.99) == pytest.approx(9.9)


def test_measures_of_two_streams_that_overlap() -> None:
    first = Answer(10.0, text_at=[10.5, 10.6, 10.7], prompt_tokens=30, output_tokens=3)
    second = Answer(10.2, text_at=[11.2, 11.4, 12.0], prompt_tokens=50, output_tokens=3)

    measures = measure([first, second], failed=1, foreign_cpu_share=0.0, client_cpu_share=0.0)

    assert measures.requests_per_s == pytest.approx(1.0)  # 2 in the 2 s from 10.0 to 12.0
    assert measures.tokens_per_s == pytest.approx(43.0)
    assert measures.output_tokens_per_s == pytest.approx(3.0)
    assert measures.ttft_ms_p50 == pytest.approx(750.0)  # of 500 and 1000
    assert measures.gap_ms_p50 == pytest.approx(150.0)  # of 100, 100, 200 and 600
    assert measures.gap_ms_worst == pytest.approx(600.0)
    assert measures.decode_tokens_per_s == pytest.approx(6.25)  # of 2 in 0.2 s and 2 in 0.8 s
    assert measures.failed == 1


def test_tokens_that_come_together_are_one_piece() -> None:
    answer = Answer(0.0, text_at=[1.0, 2.0], prompt_tokens=5, output_tokens=4)

    assert measure([answer], 0, 0.0, 0.0).tokens_per_piece == 2.0


def test_a_stream_of_one_token_has_no_gaps_and_no_decode_rate() -> None:
    answer = Answer(0.0, text_at=[0.5], prompt_tokens=5, output_tokens=1)

    measures = measure([answer], 0, 0.0, 0.0)

    assert (measures.gap_ms_p99, measures.decode_tokens_per_s) == (0.0, 0.0)


def test_stolen_time_is_busy_and_guest_time_is_not_counted_twice() -> None:
    times = {"user": 3.0, "system": 1.0, "idle": 9.0, "iowait": 2.0, "steal": 0.5, "guest": 1.0}

    assert busy_seconds(times) == 4.5


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("fma avx512f avx512_bf16", "bfloat16"), ("fma avx512f", "float32"), ("", "float32")],
)
def test_bfloat16_is_for_cpus_that_multiply_it(flags: str, precision: str) -> None:
    cpuinfo = f"processor\t: 0\nmodel name\t: A CPU: fast\nflags\t\t: {flags}\nmodel name : B\n"

    assert field_of(cpuinfo, "model name") == "A CPU: fast"
    assert best_precision(field_of(cpuinfo, "flags")) == precision
