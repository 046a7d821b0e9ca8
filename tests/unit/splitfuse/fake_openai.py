"""A server with OpenAI's protocol that knows no model: it answers by a rule, and remembers."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.event_server import EventHandler, EventServer, running

PATIENCE_S = 20.0


class FakeOpenAI(EventServer):
    """Answers each prompt with its words in reverse order, a piece per word.

    A prompt with the word "slow" streams until the client goes; "stuck" says nothing more behind
    its first piece; "fail" fails in the middle of a stream; "refuse" is refused.
    """

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.keys: list[str | None] = []
        self.client_gone = threading.Event()


@contextmanager
def fake_openai() -> Iterator[FakeOpenAI]:
    server = FakeOpenAI()
    with running(server):
        yield server


class _Handler(EventHandler):
    server: FakeOpenAI

    def do_GET(self) -> None:
        self.send_json(200, {"data": [{"id": "fake"}]})

    def do_POST(self) -> None:
        body = self.read_body()
        self.server.bodies.append(body)
        self.server.keys.append(self.headers.get("authorization"))
        is_chat = "messages" in body
        prompt = body["messages"][-1]["content"] if is_chat else body["prompt"]
        self.server.together.wait(PATIENCE_S)
        if "refuse" in prompt:
            self.send_json(400, {"error": {"message": "I refuse", "code": "invalid_request"}})
        elif body.get("stream"):
            self._stream(prompt, is_chat)
        else:
            words = prompt.split()[::-1]
            self.send_json(200, self._event(" ".join(words), len(words), "stop", is_chat))

    def _stream(self, prompt: str, is_chat: bool) -> None:
        words = prompt.split()[::-1]
        self.begin_events()
        try:
            while "slow" in words:
                self.send_event(self._event("zzz ", 1, None, is_chat))
                time.sleep(0.01)
            for index, word in enumerate(words):
                finish = "stop" if index == len(words) - 1 else None
                self.send_event(self._event(f"{word} ", index + 1, finish, is_chat))
                if "stuck" in words:
                    self.rfile.read(1)  # until the client goes
                    self.server.client_gone.set()
                    break
                if "fail" in words:
                    self.send_event({"error": {"message": "I failed", "code": "internal_error"}})
            self.send_event({"choices": [], "usage": {}})
            self.end_events()
        except OSError:
            self.server.client_gone.set()

    def _event(self, text: str, length: int, finish: str | None, is_chat: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        choice |= {"delta": {"content": text}} if is_chat else {"text": text}
        return {
            "choices": [choice],
            "usage": {"prompt_tokens": 7, "completion_tokens": length},
        }
