"""A real mesh for tests: every service a process, every link a socket, all in one directory.

The test plays the supervisor: it starts services, kills them, starts them again under their old
name, and looks at their metrics. Nothing is restarted behind its back.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

import httpx

from tests.support.free_port import free_port

ROOT = Path(__file__).resolve().parents[2]
START_DEADLINE_S = 120.0

# A machine that runs tests is busy: peers are given time before they are called lost, except
# where a process dies, which is seen at once.
COMMON_FLAGS = ("--heartbeat-limit-s", "10", "--audit-period-s", "2", "--log-level", "debug")


def wait_until(
    condition: Callable[[], bool], what: str, deadline_s: float = START_DEADLINE_S
) -> None:
    """Poll until `condition()`; TimeoutError naming `what` after the deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {deadline_s} s: {what}")
        time.sleep(0.02)


@dataclass
class Service:
    """One process of the mesh."""

    kind: str
    name: str
    flags: tuple[str, ...]
    port: int  # of its /metrics: the gateway's own HTTP port, or the probe's
    log: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples called `splitfuse:{name}` that carry these labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        pattern = re.compile(
            rf"^splitfuse:{re.escape(name)}(?:\{{(.*?)\}})? ([^ ]+)$", re.MULTILINE
        )
        return sum(
            float(value)
            for found, value in pattern.findall(text)
            if all(f'{key}="{label}"' in found for key, label in labels.items())
        )

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Mesh:
    """Start with `with Mesh(model_dir, ...) as mesh:`; it is ready when the block begins."""

    def __init__(
        self,
        model: Path,
        *,
        gateways: int = 1,
        tokenizers: int = 1,
        schedulers: int = 1,
        workers: int = 1,
        scheduler_flags: Sequence[str] = (),
        worker_flags: Sequence[str] = (),
        gateway_flags: Sequence[str] = (),
        tokenizer_flags: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.directory = Path(tempfile.mkdtemp(prefix="sf-test-"))
        self.services: list[Service] = []
        self._counts = {
            "scheduler": schedulers,
            "worker": workers,
            "tokenizer": tokenizers,
            "gateway": gateways,
        }
        self._flags = {
            "gateway": tuple(gateway_flags),
            "tokenizer": tuple(tokenizer_flags),
            "scheduler": tuple(scheduler_flags),
            "worker": tuple(worker_flags),
        }

    def __enter__(self) -> Self:
        try:
            for kind, count in self._counts.items():
                for index in range(count):
                    self.spawn(kind, f"{kind}-{index}")
            self.wait_ready()
        except BaseException:
            self._kill_all()
            raise
        return self

    def __exit__(self, error: object, *_: object) -> None:
        logs = {service.name: service.tail(15) for service in self.services} if error else {}
        self._kill_all()
        for name, tail in logs.items():
            print(f"--- {name}\n{tail}")
        shutil.rmtree(self.directory, ignore_errors=True)

    def _kill_all(self) -> None:
        for service in self.services:
            with contextlib.suppress(ProcessLookupError):
                service.process.kill()
            service.process.wait()

    def of(self, kind: str) -> list[Service]:
        return [service for service in self.services if service.kind == kind]

    @property
    def url(self) -> str:
        return self.of("gateway")[0].url

    def spawn(self, kind: str, name: str, *extra: str) -> Service:
        """Start one more service; the others find it by themselves."""
        port = free_port()
        flags = (*self._addresses(kind), *COMMON_FLAGS, *self._flags[kind], *extra)
        where = ("--port", str(port)) if kind == "gateway" else ("--probe-port", str(port))
        log = self.directory / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*self._command(kind), "--name", name, *where, *flags],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        service = Service(kind, name, extra, port, log, process)
        self.services.append(service)
        return service

    def kill(self, service: Service) -> None:
        """kill -9, as a crash would."""
        service.process.send_signal(signal.SIGKILL)
        service.process.wait()
        self.services.remove(service)

    def restart(self, service: Service) -> Service:
        """What a supervisor does: the same name again, in a new process."""
        return self.spawn(service.kind, service.name, *service.flags)

    def wait_ready(self, deadline_s: float = START_DEADLINE_S) -> None:
        for gateway in self.of("gateway"):
            ready = partial(self._is_ready, gateway)
            wait_until(ready, f"{gateway.name} ready", deadline_s)
        workers = self._counts["worker"]
        wait_until(
            lambda: sum(s.metric("num_workers") for s in self.of("scheduler")) >= workers,
            f"{workers} workers joined",
            deadline_s,
        )

    def _is_ready(self, gateway: Service) -> bool:
        for service in self.services:
            if service.process.poll() is not None:
                raise RuntimeError(f"{service.name} exited\n{service.tail()}")
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{gateway.url}/health/ready", timeout=10).status_code == 200
        return False

    def _command(self, kind: str) -> tuple[str, ...]:
        return (sys.executable, "-m", f"services.{kind}")

    def _addresses(self, kind: str) -> tuple[str, ...]:
        tokenizer, scheduler = (f"ipc://{self.directory}/{kind}" for kind in ("tok", "sch"))
        model = ("--model", str(self.model))
        return {
            "gateway": ("--tokenizer-address", tokenizer),
            "tokenizer": ("--bind", tokenizer, "--scheduler-address", scheduler, *model),
            "scheduler": ("--bind", scheduler),
            "worker": ("--scheduler-address", scheduler, *model),
        }[kind]
