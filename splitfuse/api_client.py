"""Clients of a running server: one that is awaited, and one that blocks."""

import asyncio
import os
import subprocess
import threading
from collections.abc import AsyncGenerator, Awaitable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import httpx

from splitfuse.app_tree import python_command, python_environment
from splitfuse.generate import (
    DEFAULT_MAX_NEW_TOKENS,
    GenerateOptions,
    GenerateParams,
    Response,
    check_params,
    check_prompts,
    completion_body,
    parse_answer,
    parse_error,
)
from splitfuse.sse import read_events

API_KEY_VARIABLE = "SPLITFUSE_API_KEY"
CONNECT_TIMEOUT_S = 10.0
CANCEL_LIMIT_S = 5.0
MAX_NUM_REQUESTS = 256  # at once; the prompts of a longer list wait here for their turn

Result = TypeVar("Result")


class AsyncClient:
    """Generates with a running server; `async with` or `close` releases its connections.

    Args:
        url: where the server is, e.g. "http://127.0.0.1:8000".
        model: which model to ask for; default: the first that the server lists.
        api_key: default: $SPLITFUSE_API_KEY, if that is set.
        uds: a unix socket to reach the server by.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        model: str | None = None,
        api_key: str | None = None,
        uds: Path | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._model = model
        key = api_key or os.environ.get(API_KEY_VARIABLE) or None
        limits = httpx.Limits(max_connections=MAX_NUM_REQUESTS)
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            transport=httpx.AsyncHTTPTransport(
                uds=None if uds is None else str(uds), limits=limits
            ),
        )
        self._turns = asyncio.Semaphore(MAX_NUM_REQUESTS)

    async def __call__(
        self, prompts: str | list[str], **options: Unpack[GenerateOptions]
    ) -> list[Response]:
        """The same as `generate`."""
        return await self.generate(prompts, **options)

    async def generate(
        self, prompts: str | list[str], **options: Unpack[GenerateOptions]
    ) -> list[Response]:
        """Complete all prompts at once; responses come in the order of the prompts.

        Raises:
            TypeError: an option is unknown, or a prompt is no string.
            ValueError: an option has a value that cannot be used, or a prompt is empty.
            ServerError: the server refused or failed one of them; the others are cancelled.
            httpx.TransportError: the server cannot be reached.
        """
        params, listed = check_params(options), check_prompts(prompts)
        model = await self.model()
        tasks = [asyncio.ensure_future(self._complete(model, p, params)) for p in listed]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def stream(
        self, prompt: str, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[Response, None]:
        """Complete one prompt piece by piece. Closing the iterator cancels the request.

        Raises:
            TypeError, ValueError, ServerError, httpx.TransportError: as in `generate`.
        """
        params, (prompt,) = check_params(options), check_prompts([prompt])
        model = await self.model()
        max_tokens = await self._max_tokens(model, prompt, params)
        body = completion_body(model, prompt, params, max_tokens, stream=True)
        lead = prompt if params.return_full_text else ""
        async with self._http.stream("POST", "/v1/completions", json=body) as response:
            async for event in read_events(response):
                if event["choices"]:
                    piece = parse_answer(event)
                    yield _with_lead(piece, lead)
                    lead = ""

    async def model(self) -> str:
        """The model that requests are for.

        Raises:
            ServerError: the server lists none.
        """
        if self._model is None:
            response = await self._http.get("/v1/models")
            if response.status_code != httpx.codes.OK:
                raise parse_error(response.status_code, response.content)
            models = response.json()["data"]
            if not models:
                raise parse_error(503, b"no model is ready")
            self._model = str(models[0]["id"])
        return self._model

    async def terminate_server(self) -> None:
        """End the server, if it runs on this machine and is this user's.

        Raises:
            RuntimeError: it is not, or it did not end.
        """
        await asyncio.to_thread(_stop, self.url)

    async def close(self) -> None:
        """Release all connections; what is still running is cancelled by that."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _complete(self, model: str, prompt: str, params: GenerateParams) -> Response:
        async with self._turns:
            max_tokens = await self._max_tokens(model, prompt, params)
            body = completion_body(model, prompt, params, max_tokens, stream=False)
            response = _with_lead(parse_answer(await self._post(body)), "")
        return _with_lead(response, prompt if params.return_full_text else "")

    async def _max_tokens(self, model: str, prompt: str, params: GenerateParams) -> int:
        """`max_length` counts the prompt's tokens, and only the server can: ask for one token."""
        if params.max_length is None:
            return params.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        probe = completion_body(model, prompt, check_params({}), 1, stream=False)
        prompt_length = parse_answer(await self._post(probe)).prompt_length
        if prompt_length >= params.max_length:
            raise ValueError(
                f"max_length ({params.max_length}) leaves no room behind a prompt of "
                f"{prompt_length} tokens"
            )
        return params.max_length - prompt_length

    async def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        response = await self._http.post("/v1/completions", json=body)
        if response.status_code != httpx.codes.OK:
            raise parse_error(response.status_code, response.content)
        answer: dict[str, Any] = response.json()
        return answer


def _with_lead(piece: Response, lead: str) -> Response:
    if not lead:
        return piece
    return Response(
        lead + piece.generated_text,
        piece.prompt_length,
        piece.generated_length,
        piece.finish_reason,
    )


def _stop(url: str) -> None:
    result = subprocess.run(
        [*python_command("splitfuse"), "stop", url],
        env=python_environment(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(result.stderr.strip())


class Client:
    """`AsyncClient` for code that is not asynchronous; may be used from several threads.

    Ctrl-C during a call cancels its requests.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        model: str | None = None,
        api_key: str | None = None,
        uds: Path | None = None,
    ) -> None:
        self._loop = _LoopThread()
        self._client = AsyncClient(url, model=model, api_key=api_key, uds=uds)

    @property
    def url(self) -> str:
        return self._client.url

    def __call__(
        self, prompts: str | list[str], **options: Unpack[GenerateOptions]
    ) -> list[Response]:
        """The same as `generate`."""
        return self.generate(prompts, **options)

    def generate(
        self, prompts: str | list[str], **options: Unpack[GenerateOptions]
    ) -> list[Response]:
        """See `AsyncClient.generate`."""
        return self._loop.run(self._client.generate(prompts, **options))

    def stream(self, prompt: str, **options: Unpack[GenerateOptions]) -> Iterator[Response]:
        """See `AsyncClient.stream`."""
        pieces = self._client.stream(prompt, **options)
        try:
            while True:
                try:
                    yield self._loop.run(anext(pieces))
                except StopAsyncIteration:
                    return
        finally:
            if self._loop.is_running:
                self._loop.run(pieces.aclose())

    def model(self) -> str:
        """See `AsyncClient.model`."""
        return self._loop.run(self._client.model())

    def terminate_server(self) -> None:
        """See `AsyncClient.terminate_server`."""
        _stop(self.url)

    def close(self) -> None:
        """Release all connections and the thread behind this client; may be called again."""
        if self._loop.is_running:
            self._loop.run(self._client.close())
            self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _LoopThread:
    """An event loop in a daemon thread, which does not keep a forgetful script alive."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="splitfuse-client", daemon=True
        )
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return not self._loop.is_closed()

    def run(self, awaitable: Awaitable[Result]) -> Result:
        """Run it there and wait; an interrupt here cancels it, and it has ended afterwards."""
        ended = threading.Event()

        async def wait() -> Result:
            task = asyncio.ensure_future(awaitable)
            task.add_done_callback(lambda _: ended.set())
            return await task

        future = asyncio.run_coroutine_threadsafe(wait(), self._loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                ended.wait(CANCEL_LIMIT_S)
            raise

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
