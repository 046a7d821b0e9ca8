"""Start `splitfuse serve` as a process from Python code, and wait until it serves.

Options are those of the command line; they are checked there, so there is one place that knows
them. Runs in users' processes: imports nothing of the mesh.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from splitfuse.api_client import API_KEY_VARIABLE
from splitfuse.app_tree import python_command, python_environment
from splitfuse.flags import to_flags

EXIT_CONFIG = 2
POLL_S = 0.05
LEAVE_S = 10.0
LONGEST_SOCKET_DIR = 60  # bytes; a unix socket's path has at most 107

# DeepSpeed-MII's names for options that we have under another, or only in one value.
_ALIASES = {"replica_num": "workers", "max_length": "max_model_len"}


def serve_flags(options: Mapping[str, Any]) -> list[str]:
    """Keyword arguments as flags of `splitfuse serve`.

    Raises:
        ValueError: an option of DeepSpeed-MII that this server cannot honour.
    """
    given = dict(options)
    tensor_parallel = given.pop("tensor_parallel", 1)
    if tensor_parallel != 1:
        raise ValueError(
            f"tensor_parallel={tensor_parallel}: one worker uses one device; "
            "replica_num (or workers) makes more of them"
        )
    return to_flags({_ALIASES.get(name, name): value for name, value in given.items()})


class LocalServer:
    """A `splitfuse serve` process of ours.

    Args:
        flags: of `splitfuse serve`, with MODEL.
        api_key: what clients must send; travels by environment, where other users cannot read it.
        log: what it prints is appended to this file, and shown until it is ready.
        detached: it goes on when this process ends.
    """

    def __init__(self, flags: list[str], *, api_key: str | None, log: Path, detached: bool) -> None:
        environ = python_environment(os.environ)
        if api_key is not None:
            environ[API_KEY_VARIABLE] = api_key
        self._log = log
        with open(log, "ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                [*python_command("splitfuse"), "serve", *flags],
                env=environ,
                stdin=subprocess.DEVNULL if detached else subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is ours: we end it, it does not end itself
            )

    def wait_ready(self, url: str, uds: Path | None = None) -> None:
        """Show its log until /health/ready says yes.

        Raises:
            ValueError: it does not take an option; carries its words.
            RuntimeError: it could not start; carries its words.
        """
        transport = httpx.HTTPTransport(uds=None if uds is None else str(uds))
        ready = f"{url}/health/ready"
        with httpx.Client(transport=transport, timeout=5) as http, open(self._log, "rb") as log:
            log.seek(self._log_start)
            while True:
                exit_code = self._process.poll()
                _show(log.read())
                if exit_code is not None:
                    raise self._failure(exit_code)
                with suppress(httpx.TransportError):
                    if (uds is None or _listens(uds)) and http.get(ready).is_success:
                        return
                time.sleep(POLL_S)

    def let_go(self) -> None:
        """It goes on without us; if it ends while we live, nothing of it remains in between."""
        threading.Thread(target=self._process.wait, name="splitfuse-reaper", daemon=True).start()

    def stop(self) -> None:
        """End it and wait until it has; at once if it does not want to."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _failure(self, exit_code: int) -> Exception:
        lines = self._log.read_bytes()[self._log_start :].decode(errors="replace").splitlines()
        words = lines[-1] if lines else f"it ended with exit code {exit_code} and said nothing"
        kind = ValueError if exit_code == EXIT_CONFIG else RuntimeError
        return kind(f"the server did not start: {words}")


def _listens(uds: Path) -> bool:
    """Whether a server is behind the socket; httpx does not close one that it cannot connect."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(uds)) == 0


def _show(output: bytes) -> None:
    if output:
        print(output.decode(errors="replace"), end="", file=sys.stderr, flush=True)


def local_url(host: str, port: int) -> str:
    """How to reach, from this machine, a server that binds to `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_private_dir() -> Path:
    """A directory for a socket and a log, mode 0700, with a path short enough for a socket's."""
    base = tempfile.gettempdir()
    fits = len(os.fsencode(base)) <= LONGEST_SOCKET_DIR
    return Path(tempfile.mkdtemp(prefix="splitfuse-", dir=base if fits else "/tmp"))  # noqa: S108


def remove_private_dir(path: Path) -> None:
    """The inverse; may be called again."""
    shutil.rmtree(path, ignore_errors=True)
