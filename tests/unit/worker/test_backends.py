"""Which backend serves, and how one that cannot be had is refused."""

from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError, StartupError
from services.worker.engine import Engine
from tests.support.tiny_models import make_tiny_llama
from tests.unit.worker.conftest import OPTIONS


def engine(directory: Path, **options: Any) -> Engine:
    make_tiny_llama(directory)
    return Engine(directory, OPTIONS.model_copy(update=options))


def without_compiler(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setenv("SPLITFUSE_CACHE", str(directory))
    monkeypatch.delenv("CC", raising=False)


def test_on_a_cpu_auto_is_the_cpu_backend(tmp_path: Path) -> None:
    assert engine(tmp_path, backend="auto").join.backend == "cpu"


def test_without_a_compiler_the_reference_serves_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_compiler(monkeypatch, tmp_path)

    assert engine(tmp_path, backend="auto").join.backend == "reference"

    assert capsys.readouterr().out.count("no C compiler: looked for cc, gcc, clang") == 1


def test_a_backend_asked_for_by_name_is_that_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_compiler(monkeypatch, tmp_path)

    with pytest.raises(StartupError, match="cpu backend: no C compiler"):
        engine(tmp_path, backend="cpu")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"backend": "cpu", "dtype": "float16"}, r"float32 or bfloat16, not on cpu in float16"),
        ({"backend": "triton"}, r"triton computes on a GPU, not on cpu"),
    ],
)
def test_what_a_backend_does_not_compute_is_refused(
    tmp_path: Path, options: dict[str, str], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        engine(tmp_path, **options)


def test_in_float16_the_reference_serves_a_cpu(tmp_path: Path) -> None:
    assert engine(tmp_path, backend="auto", dtype="float16").join.backend == "reference"
