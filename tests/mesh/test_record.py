"""A served mesh is recorded, and what it decided can be decided again."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from splitfuse.app_tree import python_environment
from tests.support.mesh import wait_until
from tests.support.serve_process import SPLITFUSE, Serve, complete, runtime_dir

pytestmark = pytest.mark.mesh

WORKER = ("--device=cpu", "--cpu-threads=1", "--kv-cache-memory=8MiB")


def replay(*arguments: str) -> tuple[int, str]:
    """Exit code and output of `splitfuse replay`."""
    process = subprocess.run(
        [*SPLITFUSE, "replay", *arguments],
        capture_output=True,
        env=python_environment(os.environ),
        timeout=120,
    )
    return process.returncode, (process.stdout + process.stderr).decode()


def test_on_request_a_scheduler_writes_a_record_that_replays(
    tiny_model: Path, tmp_path: Path
) -> None:
    records = tmp_path / "records"
    # Segments of half a second: the record spans copies of the state, metrics are read in between.
    flags = ("--port=0", f"--record-dir={records}", "--record-seconds=4", *WORKER)
    with runtime_dir() as runtime, Serve(runtime, str(tiny_model), *flags) as serve:
        serve.wait_ready()
        for number in range(40):
            complete(serve.url, f"Request {number} of many", max_tokens=40)
        serve.service("scheduler").send_signal(signal.SIGUSR1)
        wait_until(lambda: bool(list(records.glob("*.record"))), "a record")
        assert serve.stop() == 0
    (path,) = records.iterdir()

    exit_code, said = replay(str(path))
    assert exit_code == 0, said
    assert "came out alike" in said

    exit_code, said = replay(str(path), "--max-num-batched-tokens=4")
    assert exit_code == 0, said
    assert "the scheduler as recorded (expected) and the other one (got) part:" in said
