from pathlib import Path

import pytest

from common.errors import ConfigError
from common.workload.measures import Sla, summarize
from common.workload.timeline import RequestShape, Timeline
from splitfuse.bench.figures import draw_figures
from splitfuse.bench.processor import ProcessorShares
from splitfuse.bench.results import (
    CompactTimeline,
    Results,
    make_run,
    new_results,
    read_results,
    write_results,
)
from splitfuse.bench.tables import doubts, markdown, one_line

SLAS = [Sla(4.0)]


def timeline(sent_at: float, *token_at: float) -> Timeline:
    return Timeline(RequestShape(100, len(token_at)), sent_at, list(token_at), len(token_at))


def fast(speed: float) -> list[Timeline]:
    """Two requests at once; the first token after 0.1 s, others each 0.02 s, over `speed`."""
    gap = 0.02 / speed
    return [timeline(1.0, *(1 + 0.1 / speed + gap * i for i in range(5))) for _ in range(2)]


def a_sweep(*, verb: str = "sweep") -> Results:
    results = new_results(verb, {"seed": 1}, SLAS, {"splitfuse": [], "orca": []})
    for round_number in (1, 2):
        for label, speed in (("orca", 1.0), ("splitfuse", 1.0 + round_number)):
            run = make_run(label, round_number, 2, fast(speed), num_workers=1)
            run.summarize(SLAS)
            results.runs.append(run)
    return results


def test_a_timeline_survives_its_compact_form_to_the_microsecond() -> None:
    shape = RequestShape(100, 3, tenant="a", priority=-1)
    original = Timeline(shape, 12.5, [12.6, 12.7000004, 13.0], 3)

    found = CompactTimeline.of(original, origin_s=12.0).timeline()

    assert found.shape == shape
    assert found.ttft_s == pytest.approx(0.1, abs=1e-6)
    assert found.gaps_s == pytest.approx([0.1, 0.3], abs=2e-6)
    assert found.sent_at == pytest.approx(0.5)  # from the origin


def test_a_run_in_a_file_sums_up_to_the_same_numbers(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    results = a_sweep()
    write_results(path, results)

    again = read_results(path)
    again.summarize(SLAS)

    assert [run.summary for run in again.runs] == [run.summary for run in results.runs]
    summary = summarize(fast(1.0), SLAS, 2)
    assert again.runs[0].summary is not None
    assert again.runs[0].summary.requests_per_s == pytest.approx(summary.requests_per_s)
    assert not list(path.parent.glob(".*"))  # nothing half written


def test_other_slas_can_be_asked_of_a_file_later() -> None:
    results = a_sweep()

    results.summarize([Sla(4.0), Sla(60.0)])  # gaps are 20 ms, 10 ms and 6.7 ms: 1/60 s is 16.7 ms

    shares = {
        run.label + str(run.round_number): [goodput.share for goodput in run.summary.goodput]
        for run in results.runs
        if run.summary
    }
    assert shares == {
        "orca1": [1.0, 0.0],
        "orca2": [1.0, 0.0],
        "splitfuse1": [1.0, 1.0],
        "splitfuse2": [1.0, 1.0],
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "no result file"), ('{"verb": "sweep"}', "no result file"), (None, "No such file")],
)
def test_a_file_that_is_none_of_ours_is_refused(
    tmp_path: Path, content: str | None, words: str
) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)

    with pytest.raises(ConfigError, match=words):
        read_results(path)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    results = a_sweep()
    results.format = "splitfuse bench 99"
    write_results(tmp_path / "results.json", results)

    with pytest.raises(ConfigError, match="has format 'splitfuse bench 99'"):
        read_results(tmp_path / "results.json")


def test_servers_are_compared_round_by_round() -> None:
    lines = markdown(a_sweep()).splitlines()

    # splitfuse is 2 and 3 times as fast; columns are in the order of the servers
    assert "|  | splitfuse | orca | splitfuse / orca |" in lines
    ttft = "| TTFT P50, ms | 42 (33-50) | 100 | 0.42 (0.33-0.50) |"
    assert ttft in lines


def test_what_makes_numbers_doubtful_is_said() -> None:
    short = timeline(1.0, 1.1, 1.2)
    short.shape = RequestShape(100, 5)
    double = timeline(1.0, 1.1)
    double.num_output_tokens = double.shape.num_output_tokens + 3
    failed = Timeline(RequestShape(1, 1), 1.0, failure="status 500: no")
    run = make_run(
        "a",
        1,
        1,
        [short, double, failed],
        processor=ProcessorShares(client=0.01, server=0.9, others=0.05),
        interrupted=True,
    )
    run.summarize(SLAS)

    assert doubts(run) == [
        "INTERRUPTED",
        "1 REQUESTS FAILED: status 500: no",
        "2.00 TOKENS CAME AT A TIME",  # 6 in 3 pieces
        "50 % OF THE OUTPUTS ARE SHORTER THAN ASKED FOR",
        "OTHERS USED 5.0 % OF THE PROCESSOR",
    ]


def test_a_sound_run_in_one_line() -> None:
    run = make_run("a", 1, 2, fast(1.0))
    run.summarize(SLAS)

    # 2 requests of 5 tokens in 0.1 + 4 * 0.02 s
    assert one_line(run) == (
        "11.11 requests/s, 56 tokens/s, first token 100 ms, gap P50 20.0 ms, P99 20.0 ms"
    )


def test_a_run_of_which_nothing_came_back_says_so() -> None:
    run = make_run("a", 1, 2, [])
    run.summarize(SLAS)

    assert one_line(run) == "nothing came back"


@pytest.mark.parametrize(
    ("verb", "names"),
    [
        ("serve", ["token-latency"]),
        ("sweep", ["token-latency", "latency-throughput", "goodput"]),
        ("replicas", ["token-latency", "scaling"]),
    ],
)
def test_each_verb_has_its_figures(tmp_path: Path, verb: str, names: list[str]) -> None:
    drawn = draw_figures(a_sweep(verb=verb), tmp_path / "results.json")

    assert drawn == [tmp_path / f"results-{name}.png" for name in names]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_results_without_tokens_have_no_figures(tmp_path: Path) -> None:
    results = new_results("sweep", {}, SLAS, {})

    assert draw_figures(results, tmp_path / "results.json") == []
