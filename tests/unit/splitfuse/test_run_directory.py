import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import StartupError
from splitfuse.app_tree import python_environment
from splitfuse.run_directory import (
    MAX_ROOT_BYTES,
    Serving,
    find_serving,
    run_directory,
    write_note,
)


@pytest.fixture(autouse=True)
def runtime() -> Iterator[Path]:
    """An own XDG_RUNTIME_DIR with a short path: pytest's are too long for sockets."""
    path = Path(tempfile.mkdtemp(prefix="sf-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(path))
        yield path
    shutil.rmtree(path)


def die_in_a_run_directory() -> Path:
    """Another process makes one and is gone without cleaning up."""
    code = (
        "import os; from splitfuse.run_directory import run_directory\n"
        "with run_directory() as path: print(path, flush=True); os._exit(9)"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=python_environment(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    return Path(result.stdout.strip())


def test_it_is_private_and_gone_afterwards_with_everything_around_it(runtime: Path) -> None:
    with run_directory() as path:
        (path / "tokenizer").mkdir()
        assert path.stat().st_mode & 0o777 == 0o700
        assert path.is_relative_to(runtime)

    assert list(runtime.iterdir()) == []


def test_a_mesh_that_ends_leaves_the_others_alone() -> None:
    with run_directory() as first:
        with run_directory() as second:
            assert first != second
        assert first.is_dir()


def test_what_a_killed_mesh_left_is_removed_by_the_next() -> None:
    dead = die_in_a_run_directory()
    assert dead.is_dir()

    with run_directory():
        assert not dead.exists()


def test_a_mesh_that_serves_can_be_found_until_it_ends() -> None:
    serving = Serving(pid=os.getpid(), url="http://127.0.0.1:8000")
    with run_directory() as path:
        assert find_serving() == []
        write_note(path, serving)
        assert find_serving() == [serving]

    assert find_serving() == []


def test_a_dead_mesh_is_not_found() -> None:
    dead = die_in_a_run_directory()
    write_note(dead, Serving(pid=1, url="http://127.0.0.1:8000"))

    assert find_serving() == []
    assert not dead.exists()


def test_sockets_below_it_have_paths_that_the_kernel_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    too_long = tmp_path / ("x" * MAX_ROOT_BYTES)
    too_long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(too_long))

    with run_directory() as path:
        socket = path / "tokenizer" / f"tokenizer-{'0' * 32}.sock"
        assert len(os.fsencode(socket)) <= 107


def test_a_root_that_others_can_write_is_refused(runtime: Path) -> None:
    (runtime / "splitfuse").mkdir()
    (runtime / "splitfuse").chmod(0o777)

    with pytest.raises(StartupError, match="0700"), run_directory():
        pass
