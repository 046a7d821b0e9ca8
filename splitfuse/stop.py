"""`splitfuse stop`: end a server of this user on this machine."""

import os
import signal
import sys
import time
from contextlib import suppress
from urllib.parse import urlsplit

from splitfuse.run_directory import find_serving

LIMIT_S = 60.0
POLL_S = 0.05
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1", "0.0.0.0")  # noqa: S104  compared, not bound


def stop(url: str) -> int:
    """Ask the supervisor that serves at `url` to end, and wait until it has.

    Returns:
        The exit code: 0 if it has ended, 1 if there is none or it did not end in time.
    """
    wanted = _place(url)
    pids = {serving.pid for serving in find_serving() if _place(serving.url) == wanted}
    if not pids:
        print(f"splitfuse stop: nothing on this machine serves at {url}", file=sys.stderr)
        return 1
    for pid in pids:
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + LIMIT_S
    while any(serving.pid in pids for serving in find_serving()):
        if time.monotonic() > deadline:
            print(f"splitfuse stop: still running after {LIMIT_S:g} s", file=sys.stderr)
            return 1
        time.sleep(POLL_S)
    return 0


def _place(url: str) -> str:
    """The port, if `url` is on this machine: it may be spelt in several ways."""
    parts = urlsplit(url)
    is_here = parts.hostname in LOCAL_HOSTS and parts.scheme == "http"
    return f"port {parts.port or 80}" if is_here else url
