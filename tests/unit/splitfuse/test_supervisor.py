"""The supervisor with real processes that are no services: a few lines of Python each."""

import asyncio
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from common.errors import ConfigError, SplitfuseError, StartupError
from common.messages import ServiceKind
from splitfuse.mesh_plan import ServiceSpec
from splitfuse.supervisor import Supervisor
from splitfuse.terminal import Terminal

WAIT = "import time; time.sleep(60)"
OBEY = (
    "import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); "
    f"print('up', flush=True); {WAIT}"
)
DEFY = f"import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); {WAIT}"


class Ready(BaseHTTPRequestHandler):
    """A gateway's /health/ready that says yes."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def ready_url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Ready)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def service(name: str, code: str) -> ServiceSpec:
    kind: ServiceKind = "gateway" if name.startswith("gateway") else "worker"
    return ServiceSpec(kind, name, (sys.executable, "-c", code), dict(os.environ))


class Output(io.StringIO):
    """What was printed; whoever waits for a text is told of each write."""

    def __init__(self) -> None:
        super().__init__()
        self._news = asyncio.Event()

    def write(self, text: str) -> int:
        self._news.set()
        return super().write(text)

    async def wait_for(self, text: str, deadline_s: float = 30) -> None:
        async with asyncio.timeout(deadline_s):
            while text not in self.getvalue():
                await self._news.wait()
                self._news.clear()


class Run:
    """One run of a supervisor, and what it printed."""

    def __init__(
        self, *specs: ServiceSpec, url: str = "http://127.0.0.1:1", drain_s: float = 0.2
    ) -> None:
        self.output = Output()
        self.was_ready = False
        self._supervisor = Supervisor(
            specs,
            sockets=[],
            ready_urls=[url],
            uds=None,
            drain_s=drain_s,
            terminal=Terminal(Console(file=self.output, width=200)),
        )

    @property
    def text(self) -> str:
        return self.output.getvalue()

    def on_ready(self) -> None:
        self.was_ready = True

    async def until_signalled(self, condition: str, *signals: int) -> None:
        """Run; when `condition` was printed, send ourselves each signal, 0.1 s apart."""
        running = asyncio.create_task(self._supervisor.run(self.on_ready))
        await self.output.wait_for(condition)
        for number in signals:
            os.kill(os.getpid(), number)
            await asyncio.sleep(0.1)
        await running

    async def until_it_ends(self, *, until_stdin_closes: bool = False) -> None:
        async with asyncio.timeout(30):
            await self._supervisor.run(self.on_ready, until_stdin_closes=until_stdin_closes)


def test_lines_are_prefixed_by_the_name_of_the_service() -> None:
    run = Run(service("worker-0", OBEY))
    asyncio.run(run.until_signalled("up", signal.SIGINT))

    assert "worker-0     up\n" in run.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_services_and_returns(number: int) -> None:
    run = Run(service("gateway-0", OBEY), service("worker-0", OBEY))

    asyncio.run(run.until_signalled("worker-0     up", number))

    assert "Stopping" in run.text
    assert "restart" not in run.text


def test_a_service_that_does_not_want_to_leave_is_killed() -> None:
    run = Run(service("worker-0", DEFY))
    started = time.monotonic()

    asyncio.run(run.until_signalled("up", signal.SIGINT))

    assert time.monotonic() - started < 20  # it would sleep for 60 s


def test_a_second_signal_kills_at_once() -> None:
    run = Run(service("gateway-0", DEFY), drain_s=60)
    started = time.monotonic()

    asyncio.run(run.until_signalled("up", signal.SIGINT, signal.SIGINT))

    assert time.monotonic() - started < 30  # it was allowed to drain for 60 s


def test_a_service_that_dies_is_restarted_until_it_stays(tmp_path: Path) -> None:
    counter = tmp_path / "starts"
    code = (
        f"import pathlib; p = pathlib.Path({str(counter)!r})\n"
        "n = len(p.read_text()) if p.exists() else 0; p.write_text('x' * (n + 1))\n"
        f"if n < 2: raise SystemExit(1)\n{OBEY}"
    )
    with ready_url() as url:
        run = Run(service("worker-0", code), url=url)
        asyncio.run(run.until_signalled("up", signal.SIGINT))

    assert counter.read_text() == "xxx"
    assert "worker-0 ended (exit code 1); restart in 0.25 s" in run.text
    assert "restart in 0.5 s" in run.text
    assert run.was_ready


@pytest.mark.parametrize(("exit_code", "error"), [(2, ConfigError), (3, StartupError)])
def test_a_service_that_cannot_start_ends_the_mesh_with_its_last_words(
    exit_code: int, error: type[SplitfuseError]
) -> None:
    dying = f"import sys; print('no such model', flush=True); sys.exit({exit_code})"
    run = Run(service("gateway-0", OBEY), service("worker-0", dying))

    with pytest.raises(error, match=r"worker-0 cannot start.*no such model"):
        asyncio.run(run.until_it_ends())


def test_a_program_that_cannot_be_run_ends_the_mesh() -> None:
    missing = ServiceSpec("worker", "worker-0", ("/no/such/program",), dict(os.environ))

    with pytest.raises(FileNotFoundError):
        asyncio.run(Run(service("gateway-0", OBEY), missing).until_it_ends())


def test_the_end_of_standard_input_ends_the_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    with os.fdopen(reader) as ended:
        monkeypatch.setattr(sys, "stdin", ended)
        asyncio.run(Run(service("gateway-0", OBEY)).until_it_ends(until_stdin_closes=True))


def test_a_standard_input_that_cannot_be_watched_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(ConfigError, match="must be a pipe or a terminal"):
            asyncio.run(Run(service("gateway-0", OBEY)).until_it_ends(until_stdin_closes=True))
