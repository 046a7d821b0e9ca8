import pytest

from benchmarks.peers.measures import measure
from common.workload.timeline import RequestShape, Timeline


def timeline(sent_at: float, token_at: list[float], *, prompt: int, output: int) -> Timeline:
    return Timeline(RequestShape(prompt, output), sent_at, token_at, output)


def test_measures_of_two_streams_that_overlap() -> None:
    first = timeline(10.0, [10.5, 10.6, 10.7], prompt=30, output=3)
    second = timeline(10.2, [11.2, 11.4, 12.0], prompt=50, output=3)
    failed = Timeline(RequestShape(40, 3), 10.1, failure="refused")

    measures = measure([first, second, failed], foreign_cpu_share=0.0, client_cpu_share=0.0)

    assert measures.requests_per_s == pytest.approx(1.0)  # 2 in the 2 s from 10.0 to 12.0
    assert measures.tokens_per_s == pytest.approx(43.0)
    assert measures.output_tokens_per_s == pytest.approx(3.0)
    assert measures.ttft_ms_p50 == pytest.approx(750.0)  # of 500 and 1000
    assert measures.gap_ms_p50 == pytest.approx(150.0)  # of 100, 100, 200 and 600
    assert measures.gap_ms_worst == pytest.approx(600.0)
    assert measures.decode_tokens_per_s == pytest.approx(6.25)  # of 2 in 0.2 s and 2 in 0.8 s
    assert measures.failed == 1


def test_tokens_that_come_together_are_one_piece() -> None:
    double = timeline(0.0, [1.0, 2.0], prompt=5, output=4)

    assert measure([double], 0.0, 0.0).tokens_per_piece == 2.0


def test_a_stream_of_one_token_has_no_gaps_and_no_decode_rate() -> None:
    measures = measure([timeline(0.0, [0.5], prompt=5, output=1)], 0.0, 0.0)

    assert (measures.gap_ms_p99, measures.decode_tokens_per_s) == (0.0, 0.0)
