"""The tests of this folder again, on a library that reports every access beyond its memory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.cpu.library import supported_instruction_sets

FLAGS = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
HERE = Path(__file__).parent
TESTS = ("test_backend.py", "test_attention.py", "test_fuzz.py")

pytestmark = pytest.mark.slow


def preloads() -> str:
    """The sanitizer's runtime must be the first library of a process."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no gcc, whose sanitizers this test uses")
    found = [
        subprocess.run(
            [gcc, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(path).is_absolute() for path in found):
        pytest.skip("gcc comes without its sanitizers' runtime")
    return ":".join(found)


def test_nothing_is_read_or_written_out_of_bounds(tmp_path: Path) -> None:
    environment = os.environ | {
        "CC": "gcc",
        "CFLAGS": FLAGS,
        "LD_PRELOAD": preloads(),
        # Python and torch do not free everything at their end.
        "ASAN_OPTIONS": "detect_leaks=0",
        "SPLITFUSE_CACHE": str(tmp_path),
    }
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
        *("-k", f"{supported_instruction_sets()[0]} or test_fuzz"),
        *(str(HERE / test) for test in TESTS),
    ]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
