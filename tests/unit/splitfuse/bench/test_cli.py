"""The verbs against a server in this process; tests/mesh has them against our own."""

import os
import signal
from pathlib import Path

import pytest

from common.errors import ConfigError
from splitfuse.bench.cli import bench
from splitfuse.bench.results import read_results
from tests.unit.splitfuse.bench.openai_server import OpenAIServer, openai_server
from tests.unit.splitfuse.bench.word_tokenizer import word_tokenizer

SHORT = ("--input-len=20", "--output-len=3", "--length-distribution=fixed", "--no-plots")


def serve(server: OpenAIServer, output: Path, *flags: str) -> int:
    return bench(["serve", server.url, f"--output={output}", *SHORT, *flags])


def test_serve_measures_a_load_and_leaves_a_file_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results.json"
    with openai_server() as server:
        assert serve(server, output, "--clients=2", "--num-prompts=6") == 0

    results = read_results(output)
    (run,) = results.runs
    assert [(t.num_prompt_tokens, t.num_output_tokens) for t in run.timelines] == [(20, 3)] * 6
    assert run.num_clients == 2
    assert run.summary is not None
    assert run.summary.num_failed == 0
    printed = capsys.readouterr().out.replace("\n", "")
    assert "2 clients: " in printed
    assert str(output) in printed
    assert "| TBT P99, ms |" in output.with_suffix(".md").read_text()


def test_prompts_of_a_second_run_are_not_those_of_the_first(tmp_path: Path) -> None:
    with openai_server() as server:
        serve(server, tmp_path / "a.json", "--num-prompts=3")
        serve(server, tmp_path / "b.json", "--num-prompts=3")

    prompts = [tuple(body["prompt"]) for body in server.bodies if len(body["prompt"]) == 20]
    assert len(set(prompts)) == len(prompts) == 10  # 3 and 2 to warm up, twice


def test_a_server_that_takes_only_text_gets_text_of_the_right_length(tmp_path: Path) -> None:
    word_tokenizer(300).save(str(tmp_path / "tokenizer.json"))
    with openai_server(takes_ids=False, takes_extras=False) as server:
        flags = ("--num-prompts=2", f"--tokenizer={tmp_path}")
        assert serve(server, tmp_path / "results.json", *flags) == 0

    assert len(server.bodies[-1]["prompt"].split()) == 19  # and one that the tokenizer adds
    assert "ignore_eos" not in server.bodies[-1]


def test_failed_requests_are_an_exit_code_and_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"prompt_tokens": 2, "output_tokens": 1, "arrival_s": 0}\n' * 3)
    with openai_server() as server:

        def fail_from_the_fifth_on(count: int) -> None:
            server.fails = count >= 5  # one to find out what it takes, two to warm up, and one

        server.on_request = fail_from_the_fifth_on
        flags = [f"--trace={trace}", f"--output={tmp_path / 'r.json'}", "--no-plots"]
        assert bench(["serve", server.url, *flags]) == 1

    assert "REQUESTS FAILED: status 400" in capsys.readouterr().out.replace("\n", " ")


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    with openai_server() as server:

        def interrupt_at_the_eighth(count: int) -> None:
            if count == 8:
                os.kill(os.getpid(), signal.SIGINT)

        server.on_request = interrupt_at_the_eighth
        with pytest.raises(KeyboardInterrupt):
            serve(server, output, "--num-prompts=500", "--num-warmups=0")

    (run,) = read_results(output).runs
    assert run.interrupted
    assert 1 <= len(run.timelines) < 500
    assert all(timeline.failure is None for timeline in run.timelines)


def test_the_key_is_in_no_result_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["splitfuse", "bench", "--api-key", "secret", "--api-key=secret"]
    )
    with openai_server() as server:
        serve(server, tmp_path / "results.json", "--num-prompts=1", "--api-key=secret")

    assert "secret" not in (tmp_path / "results.json").read_text()
    assert "secret" not in (tmp_path / "results.md").read_text()


def test_a_sweep_of_a_running_server_measures_each_number_of_clients(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    with openai_server() as server:
        flags = [f"--url={server.url}", "--clients=1,3", "--rounds=2", "--num-prompts=6"]
        assert bench(["sweep", f"--output={output}", *flags, *SHORT]) == 0

    runs = read_results(output).runs
    assert [(run.round_number, run.num_clients) for run in runs] == [(1, 1), (1, 3), (2, 1), (2, 3)]


def test_a_file_is_shown_again_under_other_slas(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results.json"
    with openai_server() as server:
        serve(server, output, "--num-prompts=2")

    assert bench(["report", str(output), "--sla-tokens-per-s=100000", "--no-plots"]) == 0

    tables = output.with_suffix(".md").read_text()
    assert "| goodput, 1e+05 tok/s |" in tables
    assert "4 tok/s" not in tables
    capsys.readouterr()


def test_an_unknown_verb_is_named_and_the_known_ones_are_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bench(["swep"]) == 2

    errors = capsys.readouterr().err
    assert "unknown verb 'swep'" in errors
    assert "calibrate" in errors


@pytest.mark.parametrize(("argv", "code"), [([], 2), (["--help"], 0)])
def test_help_lists_the_verbs(
    argv: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(argv) == code
    assert "sweep" in capsys.readouterr().out


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    with openai_server() as server:
        with pytest.raises(ConfigError, match="there is no tokenizer file"):
            serve(server, tmp_path / "r.json", f"--tokenizer={tmp_path}")
        with pytest.raises(ConfigError, match="is no tokenizer"):
            serve(server, tmp_path / "r.json", f"--tokenizer={tmp_path / 'bad.json'}")
