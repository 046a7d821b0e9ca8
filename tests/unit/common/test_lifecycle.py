"""Each test runs a whole service process: signals and exit codes belong to processes."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from common.lifecycle import make_identity
from tests.support.free_port import free_port

ROOT = Path(__file__).parents[3]


@contextmanager
def a_service(behaviour: str, *flags: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.support.tiny_service", behaviour, *flags],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], word: str) -> str:
    """The first line that holds `word`."""
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return line
    raise EOFError(f"the service ended without saying {word!r}")


def rest_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=20)
    return process.returncode, output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_stops_and_exits_with_0(number: signal.Signals) -> None:
    with a_service("drains") as process:
        assert "bind=ipc:///nowhere" in read_until(process, "ready")
        process.send_signal(number)

        code, output = rest_of(process)
        assert code == 0
        assert output.index("draining") < output.index("idle") < output.index("stop: shut down")


def test_a_second_signal_does_not_wait_for_requests() -> None:
    with a_service("never idle") as process:
        read_until(process, "ready")
        process.terminate()
        read_until(process, "draining")
        process.terminate()

        code, output = rest_of(process)
        assert code == 0
        assert "stop: shut down" in output


def test_draining_is_limited_in_time() -> None:
    with a_service("never idle", "--shutdown-timeout-s", "0.1") as process:
        read_until(process, "ready")
        process.terminate()

        assert rest_of(process)[0] == 0


def test_a_signal_while_starting_stops_at_once() -> None:
    with a_service("starts slowly") as process:
        read_until(process, "starting")
        process.terminate()

        code, output = rest_of(process)
        assert code == 0
        assert "ready" not in output
        assert "stop: shut down" in output


@pytest.mark.parametrize(
    ("behaviour", "code", "explanation"),
    [
        ("bad config", 2, "reason='--bind is odd'"),
        ("cannot start", 3, "reason='no such model'"),
        ("crashes", 1, "ZeroDivisionError"),
        ("crashes in a callback", 1, "ZeroDivisionError"),
        ("returns", 1, "the service ended by itself"),
        ("crashes while draining", 1, "ZeroDivisionError"),
    ],
)
def test_each_end_has_its_exit_code_and_says_why(
    behaviour: str, code: int, explanation: str
) -> None:
    with a_service(behaviour) as process:
        if behaviour == "crashes while draining":
            read_until(process, "ready")
            process.terminate()

        actual, output = rest_of(process)
        assert actual == code
        assert explanation in output
        assert "stop: failed" in output


def test_collections_do_not_look_at_what_the_service_started_with() -> None:
    with a_service("counts what is frozen") as process:
        assert int(read_until(process, "frozen").split()[-1]) > 1000


def test_a_broken_connection_in_a_callback_is_logged_and_survived() -> None:
    with a_service("loses a connection") as process:
        read_until(process, "ConnectionResetError")
        process.terminate()

        assert rest_of(process)[0] == 0


def test_stopping_that_hangs_is_given_up() -> None:
    with a_service("hangs at the end") as process:
        read_until(process, "ready")
        process.terminate()

        code, output = rest_of(process)
        assert code == 0
        assert "stopping took too long" in output


def test_the_probe_answers_while_the_service_starts() -> None:
    port = free_port()
    with a_service("starts slowly", "--probe-port", str(port)) as process:
        read_until(process, "starting")

        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
        assert httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 503


def test_a_taken_probe_port_is_a_startup_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with a_service("drains", "--probe-port", str(port)) as process:
            code, output = rest_of(process)

    assert code == 3
    assert "choose another --probe-port" in output


def test_instances_of_one_name_differ() -> None:
    first, second = make_identity("worker", "worker-0"), make_identity("worker", "worker-0")

    assert (first.kind, first.name) == (second.kind, second.name) == ("worker", "worker-0")
    assert first.instance_id != second.instance_id


def test_a_service_without_a_name_gets_one_from_host_and_process() -> None:
    assert make_identity("gateway", None).name.startswith("gateway-")
