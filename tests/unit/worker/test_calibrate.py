"""The command measures a model, writes what others read, and says what fails."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from common.calibration_file import read
from services.worker import calibrate
from services.worker.calibration_store import known_or_measured
from services.worker.engine import Engine
from tests.unit.worker.conftest import OPTIONS


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def run(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    options = ("--device", "cpu", "--cpu-threads", "1", "--dtype", "float32", "--block-size", "8")
    more = ("--kv-cache-memory", "8MiB", "--backend", "reference", "--seconds", "1")
    monkeypatch.setattr("sys.argv", ["calibrate", *argv, *options, *more])
    return calibrate.main()


def test_a_curve_of_time_over_tokens_is_written(
    tiny_llama: tuple[Path, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "calibration.json"

    assert run(monkeypatch, str(tiny_llama[0]), "--json", str(file)) == 0

    found = read(file)
    assert (found.device, found.backend, found.dtype) == ("cpu", "reference", "float32")
    assert found.machine.endswith(", 1 threads")
    # Sequences of this model have 256 tokens at most.
    sizes = [point.num_tokens for point in found.curve]
    assert sizes == [size for size in calibrate.SIZES if size < 256]
    for point in found.curve:
        assert point.tokens_per_s == pytest.approx(1e3 * point.num_tokens / point.ms)
    assert len(found.timings) > len(found.curve)


def test_later_starts_take_it_as_theirs(
    tiny_llama: tuple[Path, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "calibration.json"
    run(monkeypatch, str(tiny_llama[0]), "--json", str(file))
    engine = Engine(tiny_llama[0], OPTIONS)

    found = known_or_measured(engine, tiny_llama[0], OPTIONS, lambda: 0.0, _measures_nothing)

    assert found == read(file).timings


def _measures_nothing() -> None:
    raise AssertionError("a pass was measured")


def test_without_a_file_it_is_printed(
    tiny_llama: tuple[Path, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    assert run(monkeypatch, str(tiny_llama[0])) == 0

    (tmp_path / "printed.json").write_bytes(capsysbinary.readouterr().out)
    assert read(tmp_path / "printed.json").model == tiny_llama[0].name


def test_a_model_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, str(tmp_path / "nowhere")) == 3

    assert "nowhere" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_named(
    tiny_llama: tuple[Path, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "no such directory" / "x.json"

    assert run(monkeypatch, str(tiny_llama[0]), f"--json={file}") == 2

    assert f"cannot write {file}" in capsys.readouterr().err
