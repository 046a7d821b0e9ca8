import random
import threading

from common.workload.load import Load
from common.workload.timeline import RequestShape, Timeline
from splitfuse.bench.drive import drive
from splitfuse.bench.prompts import IdPrompts
from splitfuse.bench.sse_client import Endpoint
from splitfuse.bench.target import Target
from tests.unit.splitfuse.bench.openai_server import OpenAIServer, openai_server


def run(server: OpenAIServer, load: Load, *, takes_extras: bool = True) -> list[Timeline]:
    target = Target(Endpoint.of(server.url), "tiny", IdPrompts(50), takes_extras)
    ended: list[Timeline] = []
    drive(load, target.bodies(load.shapes, random.Random(1)), target.endpoint, ended.append)
    return ended


def test_each_request_of_a_closed_loop_is_sent_once_and_timed() -> None:
    shapes = [RequestShape(length, length + 1) for length in range(1, 8)]
    with openai_server() as server:
        ended = run(server, Load(shapes, [0.0, 0.0], is_closed=True))

    assert sorted(t.shape.num_prompt_tokens for t in ended) == list(range(1, 8))
    for timeline in ended:
        assert timeline.failure is None
        assert timeline.num_output_tokens == timeline.shape.num_output_tokens
        assert len(timeline.token_at) == timeline.num_output_tokens
        assert timeline.sent_at <= timeline.token_at[0] <= timeline.token_at[-1]


def test_a_closed_loop_has_as_many_requests_at_once_as_clients() -> None:
    with openai_server() as server:
        server.together = threading.Barrier(3)  # 9 requests come in threes, or none is answered
        run(server, Load([RequestShape(1, 1)] * 9, [0.0] * 3, is_closed=True))

    assert server.max_num_running == 3


def test_requests_of_an_open_loop_do_not_wait_for_each_other() -> None:
    with openai_server() as server:
        server.together = threading.Barrier(5)
        ended = run(server, Load([RequestShape(1, 1)] * 5, [0.0, 0.0, 0.01, 0.02, 0.03], False))

    assert [timeline.failure for timeline in ended] == [None] * 5
    sent = sorted(timeline.sent_at for timeline in ended)
    assert sent[4] - sent[0] >= 0.028  # sleeps are exact to a millisecond


def test_a_refused_request_is_a_failed_one_and_others_go_on() -> None:
    with openai_server(takes_extras=False) as server:
        ended = run(server, Load([RequestShape(1, 1)] * 3, [0.0], is_closed=True))

    assert len(ended) == 3
    for timeline in ended:
        assert timeline.failure is not None
        assert "status 400" in timeline.failure
        assert "unknown field ignore_eos" in timeline.failure


def test_without_counts_of_the_server_each_piece_is_a_token() -> None:
    with openai_server(takes_extras=False) as server:
        load = Load([RequestShape(3, 4)], [0.0], is_closed=True)
        (timeline,) = run(server, load, takes_extras=False)

    assert timeline.num_output_tokens == 4
    assert timeline.shape.num_prompt_tokens == 3


def test_tenant_and_priority_travel_with_the_request() -> None:
    shape = RequestShape(1, 1, tenant="a", priority=-2)
    with openai_server() as server:
        run(server, Load([shape], [0.0], is_closed=True))

    (body,) = server.bodies
    assert (body["cache_salt"], body["priority"]) == ("a", -2)
