"""A server with OpenAI's completions that answers by a rule, in this process, and remembers.

It streams `max_tokens` pieces, counts tokens as OpenAI does, and can be as strict as some are.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class OpenAIServer(ThreadingHTTPServer):
    """Strict: it refuses what OpenAI's API lacks."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, *, takes_ids: bool = True, takes_extras: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.takes_ids = takes_ids
        self.takes_extras = takes_extras
        self.model_names = ["tiny"]
        self.fails = False  #: whether it refuses everything
        #: told how many requests have come, at each before it is answered
        self.on_request: Callable[[int], object] = lambda _: None
        self.bodies: list[dict[str, Any]] = []
        self.num_running = 0
        self.max_num_running = 0
        self.lock = threading.Lock()
        #: requests wait here until so many are there; broken: they wait no longer
        self.together = threading.Barrier(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

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
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.together.abort()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: OpenAIServer

    def do_GET(self) -> None:
        self._json(200, {"data": [{"id": name} for name in self.server.model_names]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
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
            self._json(400, {"error": {"message": refusal}})

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for _ in range(body["max_tokens"]):
            self._send({"choices": [{"index": 0, "text": "a "}]})
        if body.get("stream_options", {}).get("include_usage"):
            prompt = body["prompt"]
            num_prompt = len(prompt.split() if isinstance(prompt, str) else prompt)
            usage = {"prompt_tokens": num_prompt, "completion_tokens": body["max_tokens"]}
            self._send({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _send(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _json(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass
