"""The verbs that only touch files; the others are watched as processes in tests/mesh."""

from pathlib import Path

import pytest

from common.curve import PUBLIC_FILE, SECRET_FILE, load_keys
from splitfuse.cli import run


def test_keys_are_made_once_and_kept_when_asked_to(tmp_path: Path) -> None:
    directory = tmp_path / "mesh"

    assert run(["keys", str(directory), "--keep"]) == 0
    made = load_keys(directory)
    assert run(["keys", str(directory), "--keep"]) == 0

    assert load_keys(directory) == made


def test_without_keep_keys_that_are_there_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["keys", str(tmp_path)])

    assert run(["keys", str(tmp_path)]) == 2
    assert "keys are not replaced" in capsys.readouterr().err


@pytest.mark.parametrize("damaged", [PUBLIC_FILE, SECRET_FILE])
def test_only_valid_keys_are_kept(
    tmp_path: Path, damaged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["keys", str(tmp_path)])
    (tmp_path / damaged).write_text("x" * 40)

    assert run(["keys", str(tmp_path), "--keep"]) == 2
    assert "do not match" in capsys.readouterr().err


def test_an_unknown_verb_is_named_and_the_known_ones_are_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["sevre"]) == 2

    errors = capsys.readouterr().err
    assert "unknown verb 'sevre'" in errors
    assert "serve" in errors
