"""`splitfuse serve` for real: one command, four services, and nothing left when it ends."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.free_port import free_port
from tests.support.mesh import wait_until
from tests.support.serve_process import SPLITFUSE, Serve, complete, runtime_dir

pytestmark = pytest.mark.mesh

WORKER = ("--device", "cpu", "--cpu-threads", "1", "--kv-cache-memory", "8MiB")


@pytest.fixture
def runtime() -> Iterator[Path]:
    with runtime_dir() as path:
        yield path


def test_the_line_that_it_prints_works_when_pasted(runtime: Path, tiny_model: Path) -> None:
    with Serve(runtime, str(tiny_model), "--port", "0", *WORKER) as serve:
        serve.wait_for_output("Stop:")
        (line,) = (x for x in serve.output.splitlines() if x.startswith("Try:"))

        pasted = subprocess.run(
            ["bash", "-c", line.removeprefix("Try:")], capture_output=True, check=True
        )

    answer = json.loads(pasted.stdout)
    assert answer["object"] == "chat.completion"
    assert answer["usage"]["completion_tokens"] >= 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_everything_within_five_seconds(
    runtime: Path, tiny_model: Path, number: int
) -> None:
    shared_memory = set(Path("/dev/shm").iterdir())
    with Serve(runtime, str(tiny_model), "--port", "0", *WORKER) as serve:
        serve.wait_ready()
        assert len(serve.services()) == 4

        started = time.monotonic()
        serve.signal(number)
        exit_code = serve.wait()
        took_s = time.monotonic() - started

        assert exit_code == 0
        assert took_s < 5
        assert serve.services() == []
        assert list(runtime.iterdir()) == []
        ours = {p for p in set(Path("/dev/shm").iterdir()) - shared_memory if "splitfuse" in p.name}
        assert ours == set()


def test_ctrl_c_does_not_wait_for_a_stream_longer_than_it_was_told(
    runtime: Path, tiny_model: Path
) -> None:
    flags = ("--port", "0", "--shutdown-timeout-s", "0.5", *WORKER)
    with Serve(runtime, str(tiny_model), *flags) as serve:
        serve.wait_ready()
        body = {"model": "x", "prompt": "a", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        body["model"] = httpx.get(f"{serve.url}/v1/models").json()["data"][0]["id"]
        with httpx.stream("POST", f"{serve.url}/v1/completions", json=body, timeout=60) as stream:
            next(stream.iter_bytes())
            assert serve.stop() == 0
        assert serve.services() == []


def test_a_killed_service_comes_back_and_serves(runtime: Path, tiny_model: Path) -> None:
    with Serve(runtime, str(tiny_model), "--port", "0", *WORKER) as serve:
        serve.wait_ready()
        before = complete(serve.url)
        for kind in ("worker", "tokenizer", "scheduler", "gateway"):
            old = serve.service(kind)
            old.kill()
            serve.wait_for_output(f"{kind}-0 ended (killed by signal 9); restart in 0.25 s")
            wait_until(partial(serve.is_running, kind), f"another {kind} runs")
            wait_until(lambda: _is_ready(serve.url), f"ready again after the {kind} was killed")
            assert serve.service(kind).pid != old.pid
            assert complete(serve.url) == before


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def test_kill_9_of_the_supervisor_takes_the_services_with_it(
    runtime: Path, tiny_model: Path
) -> None:
    with Serve(runtime, str(tiny_model), "--port", "0", *WORKER) as serve:
        serve.wait_ready()
        serve.signal(signal.SIGKILL)
        serve.wait()
        wait_until(lambda: serve.services() == [], "all services are gone")
        left = {path.name for path in (runtime / "splitfuse").iterdir()}

    with Serve(runtime, str(tiny_model), "--port", "0", *WORKER) as second:
        second.wait_ready()
        assert left & {path.name for path in (runtime / "splitfuse").iterdir()} == set()
        assert second.stop() == 0

    assert list(runtime.iterdir()) == []


def test_a_busy_port_is_named_before_anything_starts(runtime: Path, tiny_model: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with Serve(runtime, str(tiny_model), "--port", str(port)) as serve:
            assert serve.wait() == 3
            assert f"cannot serve on 127.0.0.1:{port}" in serve.output
            assert serve.output.count("\n") == 1
            assert serve.services() == []


def test_an_option_that_only_a_service_can_judge_ends_the_mesh_with_its_words(
    runtime: Path, tiny_model: Path
) -> None:
    with Serve(runtime, str(tiny_model), "--port", "0", "--device", "cuda:77") as serve:
        assert serve.wait() in (2, 3)
        last = serve.output.splitlines()[-1]
        assert last.startswith("splitfuse serve: worker-0 cannot start")
        assert "cuda" in last
        assert serve.services() == []


def test_several_of_each_share_one_name_and_one_address(runtime: Path, tiny_model: Path) -> None:
    first = free_port(2)
    counts = ("--gateways", "2", "--tokenizers", "2", "--schedulers", "2", "--workers", "2")
    with Serve(runtime, str(tiny_model), "--port", str(first), *counts, *WORKER) as serve:
        serve.wait_ready()
        assert len(serve.services()) == 8

        texts = {complete(f"http://127.0.0.1:{first + i}") for i in (0, 1)}

        assert len(texts) == 1
        assert serve.stop() == 0


def test_a_key_protects_the_api_and_is_on_no_command_line(runtime: Path, tiny_model: Path) -> None:
    environ = {"SPLITFUSE_API_KEY": "s3cret-key"}
    with Serve(runtime, str(tiny_model), "--port", "0", *WORKER, environ=environ) as serve:
        serve.wait_ready()
        url = f"{serve.url}/v1/models"

        assert httpx.get(url).status_code == 401
        key = {"Authorization": "Bearer s3cret-key"}
        assert httpx.get(url, headers=key).status_code == 200
        for process in [*serve.services(), psutil.Process(serve.process.pid)]:
            assert "s3cret-key" not in " ".join(process.cmdline())
        assert "s3cret-key" not in serve.output


def test_stop_ends_a_server_that_another_shell_started(runtime: Path, tiny_model: Path) -> None:
    with Serve(runtime, str(tiny_model), "--port", "0", *WORKER) as serve:
        serve.wait_ready()

        assert _stop(runtime, serve.url.replace("127.0.0.1", "localhost")) == 0
        assert serve.wait() == 0
        assert _stop(runtime, serve.url) == 1


def _stop(runtime: Path, url: str) -> int:
    command = [*SPLITFUSE, "stop", url]
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    return subprocess.run(command, env=environ, capture_output=True, check=False).returncode
