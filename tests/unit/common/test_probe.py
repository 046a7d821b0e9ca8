import socket
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from common.errors import StartupError
from common.probe import STUCK_S, Health, Probe, _Handler
from tests.support.set_clock import SetClock


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def health(clock: SetClock) -> Health:
    return Health(clock)


@pytest.fixture
def url(health: Health) -> Iterator[str]:
    with closing(Probe("127.0.0.1", 0, health)) as probe:
        yield f"http://127.0.0.1:{probe.port}"


def test_a_service_that_starts_is_live_and_not_ready(url: str) -> None:
    assert httpx.get(f"{url}/health").status_code == 200
    assert httpx.get(f"{url}/health/live").status_code == 200
    assert httpx.get(f"{url}/health/ready").status_code == 503


def test_a_ready_service_says_so_and_takes_it_back(url: str, health: Health) -> None:
    health.beat(ready=True)
    assert httpx.get(f"{url}/health/ready").text == "ready\n"
    health.beat(ready=False)
    assert httpx.get(f"{url}/health/ready").status_code == 503


def test_an_event_loop_that_does_not_turn_is_neither_live_nor_ready(
    url: str, health: Health, clock: SetClock
) -> None:
    health.beat(ready=True)
    clock.time_s += STUCK_S + 0.1

    assert httpx.get(f"{url}/health").status_code == 503
    assert httpx.get(f"{url}/health/ready").status_code == 503

    health.beat(ready=True)
    assert httpx.get(f"{url}/health").status_code == 200


def test_metrics_are_prometheus_text(url: str) -> None:
    response = httpx.get(f"{url}/metrics")

    assert response.headers["content-type"].startswith("text/plain")
    assert "process_cpu_seconds_total" in response.text


def test_anything_else_is_not_found(url: str) -> None:
    assert httpx.get(f"{url}/").status_code == 404


def test_a_client_that_says_nothing_does_not_stop_others(url: str) -> None:
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)):
        assert httpx.get(f"{url}/health").status_code == 200


def test_clients_that_hang_or_break_off_write_nothing_to_stderr(
    health: Health, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_Handler, "timeout", 0.05)
    with closing(Probe("127.0.0.1", 0, health)) as probe:
        with socket.create_connection(("127.0.0.1", probe.port)) as silent:
            assert silent.recv(1) == b""
        with socket.create_connection(("127.0.0.1", probe.port)) as broken:
            broken.sendall(b"GET /health HTTP/1.1\r\n")
            assert broken.recv(1) == b""

    assert capfd.readouterr().err == ""


def test_a_taken_port_is_a_startup_error(url: str, health: Health) -> None:
    port = int(url.rpartition(":")[2])
    with pytest.raises(StartupError, match=rf"127.0.0.1:{port}: .* another --probe-port"):
        Probe("127.0.0.1", port, health)
