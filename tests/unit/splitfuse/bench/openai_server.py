"""A server with OpenAI's completions that answers by a rule, in this process, and remembers.

It streams `max_tokens` pieces, counts tokens as OpenAI does, and can be as strict as some are.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tests.support.event_server import EventHandler, EventServer, running


class OpenAIServer(EventServer):
    """Strict: it refuses what OpenAI's API lacks."""

    def __init__(self, *, takes_ids: bool = True, takes_extras: bool = True) -> None:
        super().__init__(_Handler)
        self.takes_ids = takes_ids
        self.takes_extras = takes_extras
        self.model_names = ["tiny"]
        self.fails = False  #: whether it refuses everything
        #: told how many requests have come, at each before it is answered
        self.on_request: Callable[[int], object] = lambda _: None
        self.num_running = 0
        self.max_num_running = 0
        self.lock = threading.Lock()

    def refusal(self, body: dict[str, Any]) -> str | None:
        if self.fails:
            return "I fail"
        if not self.takes_ids and not isinstance(body["prompt"], str):
            return "the prompt must be a string"
        if not self.takes_extras and "ignore_eos" in body:
            return "unknown field ignore_eos"
        return None


@contextmanager
def openai_server(**kinds: bool) -> Iterator[OpenAIServer]:
    server = OpenAIServer(**kinds)
    with running(server):
        yield server


class _Handler(EventHandler):
    server: OpenAIServer

    def do_GET(self) -> None:
        self.send_json(200, {"data": [{"id": name} for name in self.server.model_names]})

    def do_POST(self) -> None:
        body = self.read_body()
        server = self.server
        with server.lock:
            server.bodies.append(body)
            server.num_running += 1
            server.max_num_running = max(server.max_num_running, server.num_running)
        server.on_request(len(server.bodies))
        with suppress(threading.BrokenBarrierError):
            server.together.wait(20)
        refusal = server.refusal(body)
        with server.lock:
            server.num_running -= 1
        if refusal is None:
            self._stream(body)
        else:
            self.send_json(400, {"error": {"message": refusal}})

    def _stream(self, body: dict[str, Any]) -> None:
        self.begin_events()
        for _ in range(body["max_tokens"]):
            self.send_event({"choices": [{"index": 0, "text": "a "}]})
        if body.get("stream_options", {}).get("include_usage"):
            prompt = body["prompt"]
            num_prompt = len(prompt.split() if isinstance(prompt, str) else prompt)
            usage = {"prompt_tokens": num_prompt, "completion_tokens": body["max_tokens"]}
            self.send_event({"choices": [], "usage": usage})
        self.end_events()
