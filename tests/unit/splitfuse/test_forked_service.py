"""Services as forks, seen from a process of one thread, which pytest's own is not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from splitfuse.app_tree import python_command, python_environment
from tests.support.mesh import wait_until
from tests.support.processes import is_running, run_script

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="services are forked on Linux only")

PARENT = """
import asyncio, json, os, sys
from splitfuse.forked_service import fork_services
from splitfuse.mesh_plan import ServiceSpec
from splitfuse.service_process import ServiceProcess

kept_open = open(os.devnull)
command, environ = json.loads(sys.argv[1])
spec = ServiceSpec("worker", "worker-0", tuple(command), environ)
fork = fork_services([spec])["worker-0"]

async def adopt():
    service = await ServiceProcess.adopt(spec, fork)
    return await service.wait(lambda line: print(line, flush=True))

print("exit code", asyncio.run(adopt()), flush=True)
"""


def start(service: str, directory: Path, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    """A process that forks a service of this code and prints what that prints."""
    (directory / "a_service.py").write_text(service)
    command = [*python_command("a_service"), *arguments]
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, json.dumps([command, environ])],
        env=python_environment({**os.environ, "PYTHONPATH": str(directory), "PARENTS": "own"}),
        stdout=subprocess.PIPE,
        text=True,
    )


def lines_of(service: str, directory: Path, *arguments: str, **environ: str) -> list[str]:
    with start(service, directory, *arguments, **environ) as parent:
        output, _ = parent.communicate(timeout=30)
    return output.splitlines()


def seen_by(expression: str, directory: Path, *arguments: str, **environ: str) -> Any:
    code = f"import json, os, signal, sys\nprint(json.dumps({expression}))"
    lines = lines_of(code, directory, *arguments, **environ)
    assert lines[1:] == ["exit code 0"]
    return json.loads(lines[0])


def test_lines_of_both_outputs_arrive_and_then_the_exit_code(tmp_path: Path) -> None:
    code = "import sys; print('a'); print('b', file=sys.stderr); sys.exit(3)"

    assert lines_of(code, tmp_path) == ["a", "b", "exit code 3"]


def test_it_is_run_as_a_program_with_its_own_arguments(tmp_path: Path) -> None:
    name, arguments = seen_by("[__name__, sys.argv[1:]]", tmp_path, "--port=1", "x")

    assert (name, arguments) == ("__main__", ["--port=1", "x"])


def test_its_environment_is_what_it_was_given(tmp_path: Path) -> None:
    assert seen_by("dict(os.environ)", tmp_path, ITS="own") == {"ITS": "own"}


def test_others_see_the_command_that_a_new_interpreter_would_have(tmp_path: Path) -> None:
    read = "open('/proc/self/cmdline').read().rstrip(chr(0))"

    assert seen_by(read, tmp_path, "--x=1") == " ".join([*python_command("a_service"), "--x=1"])


def test_it_has_no_files_signals_or_session_of_its_parent(tmp_path: Path) -> None:
    seen = seen_by(
        "{'open': [d for d in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + d)],"
        " 'input': sys.stdin.read(), 'leads': os.getsid(0) == os.getpid(),"
        " 'handler': signal.getsignal(signal.SIGTERM) == signal.SIG_DFL}",
        tmp_path,
    )

    assert seen == {"open": ["0", "1", "2"], "input": "", "leads": True, "handler": True}


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("raise SystemExit", ["exit code 0"]),
        ("raise SystemExit('no room')", ["no room", "exit code 1"]),
        ("raise SystemExit(2.5)", ["2.5", "exit code 1"]),
        ("import os; os.kill(os.getpid(), 9)", [f"exit code {-signal.SIGKILL}"]),
    ],
)
def test_an_exit_code_is_what_python_makes_of_it(
    tmp_path: Path, code: str, lines: list[str]
) -> None:
    assert lines_of(code, tmp_path) == lines


def test_what_it_raises_is_printed(tmp_path: Path) -> None:
    lines = lines_of("raise ValueError('broken')", tmp_path)

    assert lines[0].startswith("Traceback")
    assert lines[-2:] == ["ValueError: broken", "exit code 1"]


def test_it_dies_with_us_even_by_kill_9(tmp_path: Path) -> None:
    code = "import os, time; print(os.getpid()); time.sleep(60)"
    with start(code, tmp_path) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()

    wait_until(lambda: not is_running(pid), "the service died")


def test_a_process_with_other_threads_is_not_forked() -> None:
    code = (
        "import threading; from splitfuse.forked_service import fork_services, has_one_thread\n"
        "from splitfuse.mesh_plan import ServiceSpec\n"
        "print(has_one_thread())\n"
        "end = threading.Event(); threading.Thread(target=end.wait).start()\n"
        "print(has_one_thread())\n"
        "print(fork_services([ServiceSpec('worker', 'worker-0', ('never', 'run'), {})])); end.set()"
    )

    assert run_script(code).stdout.split() == ["True", "False", "{}"]
