"""The command: what it prints, and its exit codes."""

from pathlib import Path

import msgspec
import pytest

from services.scheduler import record
from services.scheduler.replay.__main__ import main
from tests.support.recorded_mesh import RecordedMesh
from tests.support.scheduler_mesh import a_request


def a_record(directory: Path, *, spoilt: bool = False) -> Path:
    mesh = RecordedMesh()
    mesh.join()
    for number in range(4):
        mesh.arrive(a_request(f"r{number}", [1, 2, 3, number], max_tokens=9))
    mesh.run_until_idle()
    if spoilt:
        mesh.entries[-2:] = [with_another_answer(mesh.entries[-2])]
    return mesh.write(directory)


def with_another_answer(entry: record.Entry) -> record.Entry:
    assert isinstance(entry, record.Decided)
    nothing = msgspec.Raw(record.encode_instructions([]))
    assert entry.instructions != nothing
    return msgspec.structs.replace(entry, instructions=nothing)


def test_a_record_that_reproduces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(a_record(tmp_path))]) == 0
    assert "decisions" in (printed := capsys.readouterr().out)
    assert "came out alike" in printed
    assert "otherwise" not in printed


def test_a_record_that_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(a_record(tmp_path, spoilt=True))]) == 1
    printed = capsys.readouterr().out
    assert "Recorded by test; replayed by" in printed
    assert "came out otherwise. The event:" in printed
    assert "StepFinished(worker='w'" in printed
    assert ": expected nothing, got EmitTokens(owner='o'" in printed


def test_a_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(a_record(tmp_path)), "--max-num-batched-tokens", "2"]) == 0
    printed = capsys.readouterr().out
    assert "simulated with other options" in printed
    assert "the scheduler as recorded (expected) and the other one (got) part:" in printed
    assert "answer[0].plan.chunks[0].num_tokens: expected 4, got 2" in printed


def test_a_question_whose_answer_is_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(a_record(tmp_path)), "--max-num-batched-tokens", "16"]) == 0
    assert "All decisions are alike." in capsys.readouterr().out


def test_a_file_that_is_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"hello")

    assert main([str(path)]) == 2
    assert "splitfuse replay: " in capsys.readouterr().err


def test_an_option_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["some.record", "--policy", "orca"]) == 2
    assert "policy" in capsys.readouterr().err
