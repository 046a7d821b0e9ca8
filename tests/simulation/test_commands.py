import json
from pathlib import Path

import pytest

from services.scheduler.simulation.__main__ import main

CURVE = "--curve=100:10,1100:110"
SMALL = (CURVE, "--input-len=200", "--output-len=5", "--num-prompts=20")


def test_simulate_prints_a_row_per_policy_and_load(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["simulate", *SMALL, "--clients=1,4", "--policies=splitfuse,prefill-first"])
    out = capsys.readouterr().out

    assert code == 0
    assert out.count("prefill-first") == 2
    assert "Assumed:" in out
    assert "times as fast as real time" in out


def test_all_numbers_go_to_a_file_with_what_they_rest_on(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    main(["simulate", *SMALL, "--clients=4", "--rounds=2", f"--json-file={path}"])
    document = json.loads(path.read_text())

    assert document["format"] == "splitfuse simulate 1"
    assert len(document["runs"]) == 2
    assert document["runs"][0]["summary"]["num_requests"] == 20
    assert any("curve of 2 points" in sentence for sentence in document["assumptions"])


def test_figures_are_drawn_where_they_are_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    main(["simulate", *SMALL, "--clients=1,4", "--workers=1,2", f"--plots={tmp_path}"])

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "goodput.svg",
        "latency-throughput.svg",
        "token-latency.svg",
        "workers.svg",
    ]


def test_placements_are_compared_beside_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    main(["simulate", *SMALL, "--clients=4", "--workers=2", "--placements=backlog,round-robin"])

    assert "splitfuse, round-robin" in capsys.readouterr().out


def test_plan_answers_with_replicas_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["plan", *SMALL, "--request-rate=5", "--budgets=256"])
    out = capsys.readouterr().out

    assert code == 0
    assert "1 replica with --max-num-batched-tokens 256: 0.99 of the requests within" in out


def test_a_plan_that_cannot_be_met_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["plan", *SMALL, "--request-rate=5", "--slo-ttft-ms=1", "--max-workers=2"])

    assert code == 1
    assert "Not met with 2 replicas: P99 of the first token <= 1 ms." in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["simulat"], ["--help"]])
def test_an_unknown_verb_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert "usage: splitfuse simulate|plan" in capsys.readouterr().err


def test_an_unusable_option_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate"]) == 2
    assert "exactly one of calibration, curve and gpu" in capsys.readouterr().err
