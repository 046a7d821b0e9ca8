import pytest

from common.errors import ConfigError
from common.workload.timeline import RequestShape
from common.workload.trace import parse_trace


def test_a_trace_gives_shapes_and_times_from_its_first_request() -> None:
    trace = parse_trace(
        [
            '{"prompt_tokens": 7, "output_tokens": 2, "arrival_s": 100.5, "tenant": "a"}\n',
            "\n",
            '{"prompt_tokens": 8, "output_tokens": 3, "arrival_s": 101, "priority": -1}\n',
        ]
    )

    assert trace.shapes == (
        RequestShape(7, 2, tenant="a"),
        RequestShape(8, 3, priority=-1),
    )
    assert trace.times_s == (0.0, 0.5)


def test_a_trace_without_times_gives_lengths_only() -> None:
    trace = parse_trace(['{"prompt_tokens": 7, "output_tokens": 2}'])

    assert trace.times_s is None


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "no requests"),
        (["{"], "line 1"),
        (['{"prompt_tokens": 1}'], "output_tokens"),
        (['{"prompt_tokens": 0, "output_tokens": 2}'], "prompt_tokens"),
        (['{"prompt_tokens": 1, "output_tokens": 2, "arival_s": 3}'], "arival_s"),
        (
            [
                '{"prompt_tokens": 1, "output_tokens": 2, "arrival_s": 3}',
                '{"prompt_tokens": 1, "output_tokens": 2}',
            ],
            "1 of 2 lines",
        ),
        (
            [
                '{"prompt_tokens": 1, "output_tokens": 2, "arrival_s": 3}',
                '{"prompt_tokens": 1, "output_tokens": 2, "arrival_s": 2}',
            ],
            "do not ascend",
        ),
    ],
)
def test_a_damaged_trace_is_refused_with_the_reason(lines: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_trace(lines)
