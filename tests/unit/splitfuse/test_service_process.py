import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from splitfuse.app_tree import python_environment
from splitfuse.mesh_plan import ServiceSpec
from splitfuse.service_process import (
    LONGEST_LINE_BYTES,
    SOCKET_MIN_AGE_S,
    TAIL_LINES,
    ServiceProcess,
    remove_dead_sockets,
)
from tests.support.mesh import wait_until
from tests.support.processes import is_running


def spec(code: str) -> ServiceSpec:
    return ServiceSpec("worker", "worker-0", (sys.executable, "-c", code), dict(os.environ))


async def run(code: str) -> tuple[int, list[str], ServiceProcess]:
    lines: list[str] = []
    service = await ServiceProcess.start(spec(code))
    return await service.wait(lines.append), lines, service


def test_lines_of_both_outputs_arrive_and_then_the_exit_code() -> None:
    code = "import sys; print('a', flush=True); print('b', file=sys.stderr); sys.exit(3)"

    exit_code, lines, _ = asyncio.run(run(code))

    assert (exit_code, lines) == (3, ["a", "b"])


def test_its_last_lines_are_kept() -> None:
    _, lines, service = asyncio.run(run("print(*range(100), sep='\\n')"))

    assert len(lines) == 100
    assert list(service.tail) == lines[-TAIL_LINES:]


def test_a_line_without_end_does_not_stop_the_lines_behind_it() -> None:
    code = f"print('x' * {2 * LONGEST_LINE_BYTES}); print('after')"

    exit_code, lines, _ = asyncio.run(run(code))

    assert exit_code == 0
    assert lines[-1] == "after"


def test_bytes_that_are_not_utf8_are_shown_as_such() -> None:
    _, lines, _ = asyncio.run(run("import os; os.write(1, b'caf\\xe9\\n')"))

    assert lines == ["caf\N{REPLACEMENT CHARACTER}"]


def test_killing_it_also_kills_what_it_has_started() -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )

    async def start_and_kill() -> tuple[int, int]:
        service = await ServiceProcess.start(spec(code))
        pids: list[int] = []

        def on_line(line: str) -> None:
            pids.append(int(line))
            service.kill()

        return await service.wait(on_line), pids[0]

    exit_code, grandchild = asyncio.run(start_and_kill())

    assert exit_code == -signal.SIGKILL
    wait_until(lambda: not is_running(grandchild), "the grandchild died")


@pytest.mark.skipif(sys.platform != "linux", reason="the death pact is Linux's")
def test_it_dies_with_us_even_by_kill_9() -> None:
    code = (
        "import asyncio, sys\n"
        "from splitfuse.service_process import ServiceProcess\n"
        "from tests.unit.splitfuse.test_service_process import spec\n"
        "async def main():\n"
        "    code = 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'\n"
        "    service = await ServiceProcess.start(spec(code))\n"
        "    await service.wait(lambda line: print(line, flush=True))\n"
        "asyncio.run(main())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=python_environment(os.environ),
        stdout=subprocess.PIPE,
        text=True,
    ) as supervisor:
        assert supervisor.stdout is not None
        service_pid = int(supervisor.stdout.readline())
        supervisor.kill()

    wait_until(lambda: not is_running(service_pid), "the service died")


def make_socket(path: Path, *, age_s: float) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    then = time.time() - age_s
    os.utime(path, (then, then))
    return listener


def test_only_sockets_that_nobody_listens_on_are_removed(tmp_path: Path) -> None:
    with make_socket(tmp_path / "alive.sock", age_s=60):
        make_socket(tmp_path / "dead.sock", age_s=60).close()
        make_socket(tmp_path / "young.sock", age_s=0).close()
        (tmp_path / "file").write_text("")

        remove_dead_sockets(tmp_path)

    assert SOCKET_MIN_AGE_S > 0.5
    assert {path.name for path in tmp_path.iterdir()} == {"alive.sock", "young.sock", "file"}
