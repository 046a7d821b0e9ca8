"""Processes that a test has started."""

import os
import subprocess
import sys

import psutil

from splitfuse.app_tree import python_environment


def is_running(pid: int) -> bool:
    """Whether it has not ended, also where nobody has asked for its exit code yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def run_script(code: str) -> subprocess.CompletedProcess[str]:
    """Run code as a user's script; its output as text, an exit code but 0 raises."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=python_environment(os.environ),
        capture_output=True,
        text=True,
        check=True,
    )
