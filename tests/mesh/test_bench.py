"""`splitfuse bench` against meshes of its own, as a person runs it."""

import os
import subprocess
from pathlib import Path

import psutil
import pytest

from common.calibration_file import read as read_calibration
from splitfuse.app_tree import python_environment
from splitfuse.bench.results import read_results
from tests.support.serve_process import SPLITFUSE, runtime_dir

pytestmark = pytest.mark.mesh

SHORT = ("--input-len=100", "--output-len=8", "--num-prompts=6", "--no-plots")


def bench(cache: Path, *arguments: str, **variables: str) -> Path:
    """Run a verb to its end; nothing that it started may be left. Returns its result file."""
    output = cache / "results.json"
    with runtime_dir() as runtime:
        process = subprocess.Popen(
            [*SPLITFUSE, "bench", *arguments, f"--output={output}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={
                **python_environment(os.environ),
                "XDG_RUNTIME_DIR": str(runtime),
                "SPLITFUSE_CACHE": str(cache),
                **variables,
            },
        )
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said.decode()
        assert not list(runtime.glob("splitfuse/*"))  # every mesh has cleaned up
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(cache) in str(p.info["cmdline"])]
    return output


def test_a_sweep_compares_policies_on_meshes_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    policies = "--policies=splitfuse,prefill-first"
    flags = (policies, "--clients=1,2", *SHORT)
    # an option of the bench, not of the servers, which must not see it
    output = bench(tmp_path, "sweep", str(tiny_model), *flags, SPLITFUSE_NUM_WARMUPS="1")
    results = read_results(output)

    assert [(run.label, run.num_clients) for run in results.runs] == [
        ("splitfuse", 1),
        ("prefill-first", 1),
        ("prefill-first", 2),
        ("splitfuse", 2),
    ]
    asked = [
        [(t.num_prompt_tokens, t.num_asked_tokens) for t in run.timelines] for run in results.runs
    ]
    assert sorted(asked[0]) == sorted(asked[1])  # every server gets the same requests
    assert sorted(asked[2]) == sorted(asked[3])
    for run in results.runs:
        assert [t.failure for t in run.timelines] == [None] * 6
        assert run.short_share == 0  # the end of sequence is ignored
        assert run.processor is not None
        assert run.processor.server is not None
        assert run.processor.server > 0


def test_replicas_are_measured_with_clients_in_proportion(tiny_model: Path, tmp_path: Path) -> None:
    flags = ("--workers=1,2", "--clients-per-worker=2", *SHORT)
    results = read_results(bench(tmp_path, "replicas", str(tiny_model), *flags))

    assert [(run.num_workers, run.num_clients) for run in results.runs] == [(1, 2), (2, 4)]
    assert all(t.failure is None for run in results.runs for t in run.timelines)


def test_calibrate_shows_what_passes_cost_and_draws_it(tiny_model: Path, tmp_path: Path) -> None:
    output = bench(tmp_path, "calibrate", str(tiny_model), "--worker-flags=--seconds 2")

    curve = read_calibration(output).curve
    assert curve
    assert all(point.ms > 0 for point in curve)
    assert (tmp_path / "results-pass-time.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("tool", ["simulate", "plan", "replay"])
def test_tools_of_the_scheduler_are_verbs(tool: str) -> None:
    command = [*SPLITFUSE, tool, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    assert f"splitfuse {tool}" in done.stdout
