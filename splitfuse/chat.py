"""`splitfuse chat`: talk to a model in the terminal, through any server with OpenAI's protocol.

Ctrl-C cancels the answer that is being written: its stream is closed, which the server sees.
Ctrl-D leaves. When standard input is no terminal, each line is a message and only answers are
printed, so it can be used in scripts.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator
from typing import Any

import httpx

from splitfuse.generate import ServerError
from splitfuse.options import ChatConfig
from splitfuse.sse import read_events

HELP = """/new           forget this conversation
/system TEXT   change the system message and start anew; without TEXT remove it
/quit          leave (or Ctrl-D)
Ctrl-C         cancel the answer"""

EXIT_FAILED = 1
CONNECT_TIMEOUT_S = 10.0
_CONTROL = dict.fromkeys({*range(32), *range(127, 160)} - set(map(ord, "\t\n")))

Message = dict[str, str]


class Conversation:
    """What was said so far, and the commands that change it. Pure."""

    def __init__(self, system: str | None) -> None:
        self._system = system
        self._turns: list[Message] = []

    def messages(self, text: str) -> list[Message]:
        """What to send if the person now says `text`."""
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        return [*system, *self._turns, {"role": "user", "content": text}]

    def add(self, text: str, answer: str) -> None:
        """The person said `text` and got `answer`, which may be cut short but not empty."""
        self._turns += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": answer},
        ]

    def command(self, line: str) -> str | None:
        """Obey a line that begins with a slash; returns what to print, or None to leave."""
        verb, _, rest = line.partition(" ")
        match verb:
            case "/new":
                self._turns.clear()
                return "(new conversation)"
            case "/system":
                self._system = rest.strip() or None
                self._turns.clear()
                return "(new conversation with this system message)" if self._system else "(none)"
            case "/quit" | "/exit":
                return None
            case _:
                return HELP


class ChatServer:
    """The server's side of the chat: which models it has, and its answers piece by piece."""

    def __init__(
        self, config: ChatConfig, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._config = config
        key = config.api_key
        self._http = httpx.AsyncClient(
            base_url=config.url.rstrip("/").removesuffix("/v1"),
            headers={} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"},
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            transport=transport,
        )

    async def model(self) -> str:
        """The model asked for, or the first that the server lists."""
        if self._config.model is not None:
            return self._config.model
        response = await self._http.get("/v1/models")
        response.raise_for_status()
        models = response.json()["data"]
        if not models:
            raise ServerError("the server lists no model: is it still starting?", 503, None)
        return str(models[0]["id"])

    async def answer(self, model: str, messages: list[Message]) -> AsyncGenerator[str, None]:
        """The text of the answer, in pieces."""
        body: dict[str, Any] = {"model": model, "messages": messages, "stream": True}
        if self._config.temperature is not None:
            body["temperature"] = self._config.temperature
        if self._config.max_tokens is not None:
            body["max_tokens"] = self._config.max_tokens
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            async for event in read_events(response):
                for choice in event["choices"]:
                    yield choice["delta"].get("content") or ""

    async def close(self) -> None:
        await self._http.aclose()


def chat(config: ChatConfig) -> int:
    """Chat until the person leaves or standard input ends; returns the exit code."""
    try:
        with asyncio.Runner() as runner:
            return _Session(config, runner).run()
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        print(f"splitfuse chat: cannot talk to {config.url}: {reason}", file=sys.stderr)
    except ServerError as error:
        print(f"splitfuse chat: {error}", file=sys.stderr)
    return EXIT_FAILED


class _Session:
    """The loop of reading a line and printing an answer.

    Lines are read outside the event loop, so that editing and Ctrl-C at the prompt work as in any
    program; inside `runner.run`, Ctrl-C cancels the answer.
    """

    def __init__(self, config: ChatConfig, runner: asyncio.Runner) -> None:
        self._config = config
        self._runner = runner
        self._is_terminal = sys.stdin.isatty()
        self._conversation = Conversation(config.system)

    def run(self) -> int:
        server = ChatServer(self._config)
        try:
            model = self._runner.run(server.model())
            if self._is_terminal:
                print(f"{model} on {self._config.url}. /help lists commands, Ctrl-D leaves.")
            while (line := self._read_line()) is not None:
                if line.startswith("/"):
                    reply = self._conversation.command(line)
                    if reply is None:
                        break
                    print(reply)
                elif line:
                    self._exchange(server, model, line)
            return 0
        finally:
            self._runner.run(server.close())

    def _read_line(self) -> str | None:
        """The next line; None at the end of input."""
        if not self._is_terminal:
            return line.strip() if (line := sys.stdin.readline()) else None
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives `input` editing and history
        while True:
            try:
                return input("\n> ").strip()
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                print("\n(Ctrl-D leaves)", end="")

    def _exchange(self, server: ChatServer, model: str, text: str) -> None:
        pieces: list[str] = []
        try:
            answer = server.answer(model, self._conversation.messages(text))
            self._runner.run(_print_answer(answer, pieces))
        except KeyboardInterrupt:
            if not self._is_terminal:
                raise
            print(" (cancelled)", end="")
        except ServerError as error:
            if not self._is_terminal:
                raise
            print(f"({error})", end="")
        print()
        if pieces:
            self._conversation.add(text, "".join(pieces))


async def _print_answer(answer: AsyncGenerator[str, None], pieces: list[str]) -> None:
    """Print the pieces as they come, and keep them in `pieces` also if we are cancelled.

    Control characters are kept but not printed: a model must not command the terminal.
    """
    async with contextlib.aclosing(answer):
        async for piece in answer:
            if piece:
                pieces.append(piece)
                print(piece.translate(_CONTROL), end="", flush=True)
