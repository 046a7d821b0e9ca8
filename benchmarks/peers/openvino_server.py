"""A thin OpenAI-style server over OpenVINO GenAI, which comes without one. For measuring only.

    python openvino_server.py --model CONVERTED --tokenizer DIR --port 8102 [--budget 256] ...

Runs in OpenVINO's own virtual environment, so it imports nothing of ours. The engine has a process
to itself: a step holds the interpreter's lock, and tokens would leave in bursts. Only
/v1/completions with `stream`, greedy; a client that leaves is not noticed.
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


@dataclass(frozen=True)
class EngineOptions:
    model: str  # directory of the converted model
    budget: int  # tokens per forward pass
    precision: str  # bf16 | f32, of computing and of KV
    threads: int
    cache_gb: int
    eos_token_id: int


@dataclass(frozen=True)
class Order:
    """To the engine."""

    number: int
    prompt: list[int]
    max_tokens: int
    ignore_eos: bool


@dataclass(frozen=True)
class Piece:
    """From the engine: new tokens of one request."""

    number: int
    tokens: list[int]
    finished: bool


def run_engine(link: Connection, options: EngineOptions) -> None:
    """The engine's process: take orders, step while there is work, send what came out."""
    pipeline = make_pipeline(options)
    link.send("ready")
    handles: dict[int, Any] = {}
    while True:
        while not handles or link.poll():
            order: Order = link.recv()
            handles[order.number] = add(pipeline, order, options.eos_token_id)
        pipeline.step()
        pieces = [read(number, handle) for number, handle in handles.items()]
        for piece in pieces:
            if piece.finished:
                del handles[piece.number]
        link.send([piece for piece in pieces if piece.tokens or piece.finished])


def make_pipeline(options: EngineOptions) -> Any:
    import openvino_genai  # type: ignore[import-not-found]  # of the other environment

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.dynamic_split_fuse = True
    scheduler.max_num_batched_tokens = options.budget
    scheduler.max_num_seqs = 256
    scheduler.cache_size = options.cache_gb
    scheduler.enable_prefix_caching = False
    properties = {
        "INFERENCE_PRECISION_HINT": options.precision,
        "KV_CACHE_PRECISION": options.precision,
        "INFERENCE_NUM_THREADS": options.threads,
    }
    return openvino_genai.ContinuousBatchingPipeline(options.model, scheduler, "CPU", properties)


def add(pipeline: Any, order: Order, eos_token_id: int) -> Any:
    import numpy as np
    import openvino  # type: ignore[import-not-found]
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.do_sample = False
    config.max_new_tokens = order.max_tokens
    config.ignore_eos = order.ignore_eos
    config.set_eos_token_id(eos_token_id)
    ids = openvino.Tensor(np.array([order.prompt], dtype=np.int64))
    return pipeline.add_request(order.number, ids, config)


def read(number: int, handle: Any) -> Piece:
    import openvino_genai

    # The status first: tokens that come between the two reads are then still read.
    finished = handle.get_status() != openvino_genai.GenerationStatus.RUNNING
    tokens: list[int] = []
    while handle.can_read():
        for output in handle.read().values():
            tokens += output.generated_ids
    return Piece(number, tokens, finished)


class Front:
    """The HTTP process: text to ids, ids to text, and one queue per open stream."""

    def __init__(self, link: Connection, tokenizer: Tokenizer) -> None:
        self.link = link
        self.tokenizer = tokenizer
        self.queues: dict[int, asyncio.Queue[Piece]] = {}
        self.numbers = itertools.count()

    def on_pieces(self) -> None:
        while self.link.poll():
            for piece in self.link.recv():
                self.queues[piece.number].put_nowait(piece)

    async def completions(self, request: Request) -> StreamingResponse:
        body = await request.json()
        prompt = body["prompt"]
        ids = self.tokenizer.encode(prompt).ids if isinstance(prompt, str) else prompt
        number = next(self.numbers)
        self.queues[number] = asyncio.Queue()
        ignore_eos = bool(body.get("ignore_eos"))
        self.link.send(Order(number, ids, body.get("max_tokens", 16), ignore_eos))
        return StreamingResponse(self.events(number, len(ids)), media_type="text/event-stream")

    async def events(self, number: int, prompt_tokens: int) -> AsyncIterator[bytes]:
        decoding = DecodeStream(skip_special_tokens=True)
        output_tokens = 0
        finished = False
        while not finished:
            piece = await self.queues[number].get()
            finished = piece.finished
            output_tokens += len(piece.tokens)
            texts = [decoding.step(self.tokenizer, token) for token in piece.tokens]
            if any(texts):
                yield frame("".join(text or "" for text in texts))
        del self.queues[number]
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": output_tokens}
        yield frame("", finish_reason="length", usage=usage)
        yield b"data: [DONE]\n\n"


def frame(
    text: str, finish_reason: str | None = None, usage: dict[str, int] | None = None
) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": finish_reason}
    event = {"object": "text_completion", "choices": [choice], "usage": usage}
    return f"data: {json.dumps(event)}\n\n".encode()


async def health(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("ready")


def make_app(front: Front) -> Starlette:
    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        asyncio.get_running_loop().add_reader(front.link.fileno(), front.on_pieces)
        yield

    routes = [
        Route("/v1/completions", front.completions, methods=["POST"]),
        Route("/health", health),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="original model directory")
    parser.add_argument("--port", type=int, default=8102)
    parser.add_argument("--budget", type=int, default=256)
    parser.add_argument("--precision", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--cache-gb", type=int, default=4)
    given = parser.parse_args(argv)
    eos = json.loads((given.tokenizer / "config.json").read_text())["eos_token_id"]
    options = EngineOptions(
        model=given.model,
        budget=given.budget,
        precision=given.precision,
        threads=given.threads,
        cache_gb=given.cache_gb,
        eos_token_id=eos[0] if isinstance(eos, list) else eos,
    )
    spawn = multiprocessing.get_context("spawn")
    link, far_end = spawn.Pipe()
    spawn.Process(target=run_engine, args=(far_end, options), daemon=True).start()
    far_end.close()
    link.recv()  # ready; EOFError if the engine died
    front = Front(link, Tokenizer.from_file(str(given.tokenizer / "tokenizer.json")))
    uvicorn.run(make_app(front), host="127.0.0.1", port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
