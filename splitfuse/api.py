"""The Python API: `pipeline`, `serve` and `client`, each with an async twin.

`pipeline` is a mesh for one object: it opens no port, and ends when the object does, at the latest
with this process, however that ends. `serve` starts a mesh that outlives this process; `client`
talks to one that runs. Options are the flags of `splitfuse serve` as keyword arguments.
"""

import asyncio
import os
import socket
import weakref
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any, Self, Unpack

from splitfuse.api_client import AsyncClient, Client
from splitfuse.cache import cache_dir
from splitfuse.generate import GenerateOptions, Response
from splitfuse.local_server import (
    LocalServer,
    local_url,
    make_private_dir,
    remove_private_dir,
    serve_flags,
)

PRIVATE_URL = "http://pipeline"  # behind a unix socket any host will do
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000


def pipeline(model: str | os.PathLike[str] | None = None, **options: Any) -> "Pipeline":
    """Start a private mesh and wait until it is ready.

    Args:
        model: a directory or a hub id; None for a small built-in model.
        options: flags of `splitfuse serve`, e.g. `max_num_batched_tokens=256`, `workers=2`.

    Raises:
        ValueError: an option or the model is unusable.
        RuntimeError: the mesh could not start.
    """
    return Pipeline(model, **options)


def client(
    url: str = "http://127.0.0.1:8000", *, model: str | None = None, api_key: str | None = None
) -> Client:
    """A client of a server that runs; see `AsyncClient` for the arguments."""
    return Client(url, model=model, api_key=api_key)


def async_client(
    url: str = "http://127.0.0.1:8000", *, model: str | None = None, api_key: str | None = None
) -> AsyncClient:
    """The async twin of `client`."""
    return AsyncClient(url, model=model, api_key=api_key)


def serve(model: str | os.PathLike[str] | None = None, **options: Any) -> Client:
    """Start a server that outlives this script, and wait until it is ready.

    It ends by `terminate_server` of any client on this machine, or by `splitfuse stop`. What it
    prints goes to a file in the cache directory; its name contains the port.

    Args, Raises: as `pipeline`.
    """
    url, api_key = _start_detached(model, options)
    return Client(url, api_key=api_key)


async def async_serve(model: str | os.PathLike[str] | None = None, **options: Any) -> AsyncClient:
    """The async twin of `serve`."""
    url, api_key = await asyncio.to_thread(_start_detached, model, options)
    return AsyncClient(url, api_key=api_key)


class Pipeline:
    """A private mesh. Call it with prompts; `destroy` it, or leave its `with` block, to end it."""

    def __init__(self, model: str | os.PathLike[str] | None = None, **options: Any) -> None:
        self._mesh = _PrivateMesh(model, options)
        self._client = Client(PRIVATE_URL, uds=self._mesh.uds)

    def __call__(
        self, prompts: str | list[str], **options: Unpack[GenerateOptions]
    ) -> list[Response]:
        """Complete all prompts at once; responses come in the order of the prompts.

        Raises:
            TypeError: an option is unknown, or a prompt is no string.
            ValueError: an option has a value that cannot be used, or a prompt is empty.
            ServerError: the mesh refused or failed one of them; the others are cancelled.
            RuntimeError: the pipeline was destroyed.
        """
        self._mesh.check()
        return self._client.generate(prompts, **options)

    def stream(self, prompt: str, **options: Unpack[GenerateOptions]) -> Iterator[Response]:
        """Complete one prompt piece by piece; closing the iterator cancels the request."""
        self._mesh.check()
        return self._client.stream(prompt, **options)

    def destroy(self) -> None:
        """End the mesh and free what it holds; may be called again."""
        self._client.close()
        self._mesh.destroy()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()


class AsyncPipeline:
    """The async twin of `Pipeline`; make it with `async_pipeline` and use it in `async with`."""

    def __init__(self, model: str | os.PathLike[str] | None, options: dict[str, Any]) -> None:
        self._model = model
        self._options = options
        self._mesh: _PrivateMesh | None = None
        self._client: AsyncClient | None = None

    async def __aenter__(self) -> Self:
        self._mesh = await asyncio.to_thread(_PrivateMesh, self._model, self._options)
        self._client = AsyncClient(PRIVATE_URL, uds=self._mesh.uds)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.destroy()

    async def __call__(
        self, prompts: str | list[str], **options: Unpack[GenerateOptions]
    ) -> list[Response]:
        """See `Pipeline.__call__`."""
        return await self._running().generate(prompts, **options)

    def stream(
        self, prompt: str, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[Response, None]:
        """See `Pipeline.stream`."""
        return self._running().stream(prompt, **options)

    async def destroy(self) -> None:
        """End the mesh and free what it holds; may be called again."""
        if self._client is not None and self._mesh is not None:
            await self._client.close()
            await asyncio.to_thread(self._mesh.destroy)

    def _running(self) -> AsyncClient:
        if self._client is None or self._mesh is None:
            raise RuntimeError("the pipeline has not started: use it in `async with`")
        self._mesh.check()
        return self._client


def async_pipeline(model: str | os.PathLike[str] | None = None, **options: Any) -> AsyncPipeline:
    """The async twin of `pipeline`; it starts when its `async with` block is entered."""
    return AsyncPipeline(model, options)


class _PrivateMesh:
    """A mesh behind a unix socket in a private directory, tied to this object's life."""

    def __init__(self, model: str | os.PathLike[str] | None, options: dict[str, Any]) -> None:
        for name in ("host", "port", "uds", "api_key", "until_stdin_closes"):
            if name in options:
                raise ValueError(f"a pipeline opens no port: {name} makes no sense")
        flags = serve_flags({"log_level": "warning", **options})
        directory = make_private_dir()
        self.uds = directory / "gateway.sock"
        # The end of this process closes the server's standard input, and that ends the server.
        own = [f"--uds={self.uds}", "--until-stdin-closes", *_positional(model)]
        server = LocalServer([*flags, *own], api_key=None, log=directory / "log", detached=False)
        # Also runs when the interpreter exits, and never twice.
        self._release = weakref.finalize(self, _release, server, directory)
        try:
            server.wait_ready(PRIVATE_URL, self.uds)
        except BaseException:
            self._release()
            raise

    def check(self) -> None:
        if not self._release.alive:
            raise RuntimeError("the pipeline was destroyed")

    def destroy(self) -> None:
        self._release()


def _release(server: LocalServer, directory: Path) -> None:
    server.stop()
    remove_private_dir(directory)


def _start_detached(
    model: str | os.PathLike[str] | None, options: dict[str, Any]
) -> tuple[str, str | None]:
    if options.get("uds") is not None:
        raise ValueError("a server behind a unix socket is what `pipeline` starts")
    options = {"host": DEFAULT_HOST, "port": DEFAULT_PORT, **options}
    api_key = options.pop("api_key", None)
    options["port"] = _free_port(options["host"], options["port"])
    log = cache_dir() / "logs" / f"serve-{options['port']}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    flags = [*serve_flags(options), *_positional(model)]
    server = LocalServer(flags, api_key=api_key, log=log, detached=True)
    url = local_url(options["host"], options["port"])
    try:
        server.wait_ready(url)
    except BaseException:
        server.stop()
        raise
    server.let_go()
    return url, api_key


def _positional(model: str | os.PathLike[str] | None) -> list[str]:
    return [] if model is None else ["--", os.fspath(model)]


def _free_port(host: str, port: int) -> int:
    """`port`, or any if that is 0. Checked here too: who answers on a taken port is not our server.

    Raises:
        RuntimeError: it is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RuntimeError(f"cannot serve on {host}:{port}: {error.strerror}") from error
        found: int = probe.getsockname()[1]
        return found
