"""Kernels compile for devices that are not here, and keep everything in registers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# What one program may use.
SHARED_BYTES = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}


@pytest.mark.slow
@pytest.mark.parametrize("target", list(SHARED_BYTES))
def test_no_kernel_spills_and_all_fit_the_device(target: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}

    result = subprocess.run(
        [sys.executable, "-m", "tests.kernels.triton.compile_kernels", target],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr[-2000:]
    reports = [json.loads(line) for line in result.stdout.splitlines()]
    assert {report["kernel"] for report in reports} == all_kernels()
    assert [r for r in reports if r["spilled"]] == []
    assert [r for r in reports if r["shared_bytes"] > SHARED_BYTES[target]] == []


def all_kernels() -> set[str]:
    """By name: whatever is launched is called so."""
    texts = [path.read_text() for path in (ROOT / "kernels" / "triton").glob("*.py")]
    return {name for text in texts for name in re.findall(r"^def (\w+_kernel)\(", text, re.M)}
