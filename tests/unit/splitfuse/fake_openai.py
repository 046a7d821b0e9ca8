"""A server with OpenAI's protocol that knows no model: it answers by a rule, and remembers."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATIENCE_S = 20.0


class FakeOpenAI(ThreadingHTTPServer):
    """Answers each prompt with its words in reverse order, a piece per word.

    A prompt with the word "slow" streams until the client goes; "stuck" says nothing more behind
    its first piece; "fail" fails in the middle of a stream; "refuse" is refused.
    """

    request_queue_size = 128  # the default, 5, resets connections that come at once

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.num_running = 0
        self.max_num_running = 0
        self.client_gone = threading.Event()
        self.together = threading.Barrier(1)  # requests that must be there before any is answered

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def fake_openai() -> Iterator[FakeOpenAI]:
    server = FakeOpenAI()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeOpenAI

    def do_GET(self) -> None:
        self._json(200, {"data": [{"id": "fake"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        self.server.keys.append(self.headers.get("authorization"))
        is_chat = "messages" in body
        prompt = body["messages"][-1]["content"] if is_chat else body["prompt"]
        self.server.together.wait(PATIENCE_S)
        if "refuse" in prompt:
            self._json(400, {"error": {"message": "I refuse", "code": "invalid_request"}})
        elif body.get("stream"):
            self._stream(prompt, is_chat)
        else:
            words = prompt.split()[::-1]
            self._json(200, self._event(" ".join(words), len(words), "stop", is_chat))

    def _stream(self, prompt: str, is_chat: bool) -> None:
        words = prompt.split()[::-1]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        try:
            while "slow" in words:
                self._send(self._event("zzz ", 1, None, is_chat))
                time.sleep(0.01)
            for index, word in enumerate(words):
                finish = "stop" if index == len(words) - 1 else None
                self._send(self._event(f"{word} ", index + 1, finish, is_chat))
                if "stuck" in words:
                    self.rfile.read(1)  # until the client goes
                    self.server.client_gone.set()
                    break
                if "fail" in words:
                    self._send({"error": {"message": "I failed", "code": "internal_error"}})
            self._send({"choices": [], "usage": {}})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.server.client_gone.set()
        self.close_connection = True

    def _event(self, text: str, length: int, finish: str | None, is_chat: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        choice |= {"delta": {"content": text}} if is_chat else {"text": text}
        return {
            "choices": [choice],
            "usage": {"prompt_tokens": 7, "completion_tokens": length},
        }

    def _send(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()

    def _json(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass
