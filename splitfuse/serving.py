"""`splitfuse serve`: from options to a running mesh, and what a person reads meanwhile."""

import asyncio
import json
import os
import shlex
import socket
import sys
import time
from pathlib import Path

from common.errors import StartupError
from splitfuse.forked_service import fork_services
from splitfuse.local_server import local_url
from splitfuse.mesh_plan import API_KEY_VARIABLE, Place, plan_mesh
from splitfuse.models import resolve_model
from splitfuse.options import ServeConfig
from splitfuse.run_directory import Serving, run_directory, write_note
from splitfuse.supervisor import Supervisor
from splitfuse.terminal import Terminal


def serve(config: ServeConfig, terminal: Terminal) -> None:
    """Serve until told to stop; everything it made is gone when it returns.

    Raises:
        ConfigError: the model or an option is unusable.
        StartupError: a port is taken, the model cannot be fetched or a service cannot start.
    """
    started = time.monotonic()
    ports = free_ports(config)
    model = resolve_model(config.model, terminal.say)
    with run_directory() as directory:
        place = Place(directory, model, config.served_model_name or _name(config, model), ports)
        sockets = [place.tokenizer_sockets, place.scheduler_sockets]
        for path in sockets:
            path.mkdir()
        urls = [local_url(config.host, port) for port in ports]
        specs = plan_mesh(config, place, os.environ, os.cpu_count() or 1)
        supervisor = Supervisor(
            specs,
            sockets=sockets,
            ready_urls=[f"{url}/health/ready" for url in urls],
            uds=config.uds,
            drain_s=config.shutdown_timeout_s,
            terminal=terminal,
            forks=fork_services(specs),
        )

        def on_ready() -> None:
            where = urls[0] if config.uds is None else f"unix:{config.uds.absolute()}"
            write_note(directory, Serving(pid=os.getpid(), url=where))
            seconds = time.monotonic() - started
            terminal.say(f"Ready in {seconds:.1f} s: {place.model_name} on {where}", "bold green")
            if config.uds is None:
                terminal.say(_usage(config, place, urls[0]), "")

        asyncio.run(supervisor.run(on_ready, until_stdin_closes=config.until_stdin_closes))


def free_ports(config: ServeConfig) -> tuple[int, ...]:
    """The ports of the gateways, each free at this moment.

    Raises:
        StartupError: one is taken; names it.
    """
    if config.uds is not None:
        return (config.port,)
    wanted = [config.port + i if config.port else 0 for i in range(config.gateways)]
    probes = [_bind(config.host, port) for port in wanted]  # held together: all differ
    ports = tuple(probe.getsockname()[1] for probe in probes)
    for probe in probes:
        probe.close()
    return ports


def _bind(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = min(
            found, key=lambda entry: entry[0]
        )  # as the gateway
        probe = socket.socket(family, kind, protocol)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the gateway does
        probe.bind(address)
    except OSError as error:
        raise StartupError(
            f"cannot serve on {host}:{port}: {error.strerror}; --port and --host choose another"
        ) from error
    return probe


def _name(config: ServeConfig, model: Path) -> str:
    """A directory in the hub's cache is called by a commit: say what the person said."""
    given = config.model
    return given if given is not None and not Path(given).expanduser().is_dir() else model.name


def _usage(config: ServeConfig, place: Place, url: str) -> str:
    """Lines that work when pasted into a shell."""
    body: dict[str, object] = {"model": place.model_name, "max_tokens": 64}
    if _has_chat_template(config, place.model):
        path = "/v1/chat/completions"
        body["messages"] = [{"role": "user", "content": "What is the capital of France?"}]
    else:
        path = "/v1/completions"
        body["prompt"] = "The capital of France is"
    key = "" if config.api_key is None else f' -H "Authorization: Bearer ${API_KEY_VARIABLE}"'
    data = shlex.quote(json.dumps(body))
    splitfuse = Path(sys.executable).with_name("splitfuse")
    chat = f"Chat:  {splitfuse} chat {url}\n" if "messages" in body else ""
    return (
        f"\nTry:   curl {url}{path} -H 'Content-Type: application/json'{key} -d {data}\n"
        f"{chat}Stop:  Ctrl-C\n"
    )


def _has_chat_template(config: ServeConfig, model: Path) -> bool:
    if config.chat_template is not None or (model / "chat_template.jinja").is_file():
        return True
    file = model / "tokenizer_config.json"
    return file.is_file() and "chat_template" in json.loads(file.read_text(encoding="utf-8"))
