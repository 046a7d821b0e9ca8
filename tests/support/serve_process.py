"""`splitfuse serve` as a person runs it: a process, its output, and what it leaves behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from splitfuse.app_tree import python_environment
from tests.support.mesh import wait_until

EXIT_DEADLINE_S = 60.0
SPLITFUSE = (sys.executable, "-P", "-m", "splitfuse")


@contextmanager
def runtime_dir() -> Iterator[Path]:
    """An XDG_RUNTIME_DIR of its own, short enough for sockets; the test sees all that is in it."""
    path = Path(tempfile.mkdtemp(prefix="sf-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


class Serve:
    """Use as `with Serve(runtime, ...) as serve:`; whatever still runs at the end is killed."""

    def __init__(
        self,
        runtime: Path,
        *arguments: str,
        command: tuple[str, ...] = SPLITFUSE,
        environ: dict[str, str] | None = None,
    ) -> None:
        self._output_file = tempfile.NamedTemporaryFile(prefix="serve-")  # noqa: SIM115
        environment = {**python_environment(os.environ), **(environ or {})}
        self.process = subprocess.Popen(
            [*command, "serve", *arguments],
            stdout=self._output_file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**environment, "XDG_RUNTIME_DIR": str(runtime)},
            start_new_session=True,
        )
        self._seen: dict[int, psutil.Process] = {}

    def __enter__(self) -> "Serve":
        return self

    def __exit__(self, *_: object) -> None:
        for service in self.services():
            with suppress(psutil.NoSuchProcess):
                service.kill()
        self.process.kill()
        self.process.wait()
        self._output_file.close()

    @property
    def output(self) -> str:
        return Path(self._output_file.name).read_text(errors="replace")

    @property
    def url(self) -> str:
        """Where it serves; it must be ready."""
        found = re.search(r"Ready in .* on (\S+)$", self.output, re.MULTILINE)
        assert found, self.output
        return found[1]

    def wait_ready(self) -> None:
        self.wait_for_output("Ready in ")

    def wait_for_output(self, text: str) -> None:
        def said() -> bool:
            if text in self.output:
                return True
            assert self.process.poll() is None, self.output
            return False

        wait_until(said, f"serve says {text!r}")

    def services(self) -> list[psutil.Process]:
        """All processes that it has started and that still run, also after its own end."""
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self._seen[child.pid] = child
        return [
            process
            for process in self._seen.values()
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        ]

    def is_running(self, kind: str) -> bool:
        """Whether there is a process of this kind; one that was killed is not."""
        return any(_is_of(kind, process) for process in self.services())

    def service(self, kind: str) -> psutil.Process:
        """The only process of this kind."""
        (found,) = (process for process in self.services() if _is_of(kind, process))
        return found

    def signal(self, number: int) -> None:
        self.services()  # remember them
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(EXIT_DEADLINE_S)

    def stop(self) -> int:
        """Ctrl-C, then its exit code."""
        self.signal(signal.SIGINT)
        return self.wait()


def _is_of(kind: str, process: psutil.Process) -> bool:
    """By what `ps` shows: a fork's command is one text."""
    return f"services.{kind} " in " ".join(process.cmdline())


def complete(url: str, prompt: str = "The scheduler", max_tokens: int = 5) -> str:
    """The text of one completion, sampled greedily."""
    body = {
        "model": httpx.get(f"{url}/v1/models", timeout=60).json()["data"][0]["id"],
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    response = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text
