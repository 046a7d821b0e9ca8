import pytest

from benchmarks.paper import reported
from benchmarks.paper.arms import Engine, kv_blocks, play, prefill_first, splitfuse
from benchmarks.paper.claims import Claim, interpolate
from benchmarks.paper.engines import solve

#: what `python -m benchmarks.paper` fits, rounded
FASTGEN = Engine(scale=1.71, ms_per_context_token=0.00065, ms_per_pass=0.0)
VLLM = Engine(scale=1.71, ms_per_context_token=0.00065, ms_per_pass=9.0)


def test_a_linear_measure_is_solved_from_two_of_its_points() -> None:
    assert solve(lambda x: [3 * x + 1, 6 * x + 2], (0.0, 1.0), [7.0, 14.0]) == pytest.approx(2)


def test_measures_that_disagree_meet_in_the_middle() -> None:
    assert 2 < solve(lambda x: [x, x], (1.0, 2.0), [2.0, 3.0]) < 3


def test_a_curve_is_read_between_its_points_and_nowhere_else() -> None:
    curve = [(1.0, 10.0), (2.0, 20.0), (4.0, 30.0)]

    assert interpolate(curve, 3.0) == 25.0
    assert str(interpolate(curve, 5.0)) == "nan"


def test_a_claim_says_by_how_much_a_ratio_is_off() -> None:
    assert Claim("", 2.0, 2.5, 1.0).off(2.5) == 0.25


def test_the_papers_memory_holds_many_more_tokens_than_its_clients_ask_for() -> None:
    assert kv_blocks() * 64 > 2 * 32 * 4096


@pytest.mark.parametrize("lengths", reported.LENGTHS)
def test_latencies_of_16_clients_are_the_papers_within_a_tenth(lengths: tuple[int, int]) -> None:
    """They are predicted: the engines know latencies of one client only."""
    index = reported.CLIENTS.index(16)
    ours = play(splitfuse(FASTGEN), lengths, num_clients=16).latency_s
    theirs = play(prefill_first(VLLM), lengths, num_clients=16).latency_s

    assert ours is not None
    assert theirs is not None
    assert ours.mean == pytest.approx(reported.FASTGEN_LATENCY_S[lengths][index], rel=0.1)
    assert theirs.mean == pytest.approx(reported.VLLM_LATENCY_S[lengths][index], rel=0.1)


def test_p95_of_token_latency_is_about_3_7_times_lower() -> None:
    lengths, clients = reported.TOKEN_LATENCY_LENGTHS, reported.TOKEN_LATENCY_CLIENTS
    ours = play(splitfuse(FASTGEN), lengths, num_clients=clients).tbt_s
    theirs = play(prefill_first(VLLM), lengths, num_clients=clients).tbt_s

    assert ours is not None
    assert theirs is not None
    assert theirs.p95 / ours.p95 == pytest.approx(3.7, rel=0.25)
