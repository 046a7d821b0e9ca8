"""Put a load on a server and note what the clients and the processors see."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from tokenizers import Tokenizer

from benchmarks.peers.loads import Ask, Load
from benchmarks.peers.measures import Measures, measure
from benchmarks.peers.server import Server, ServerFailed
from common.workload.load import Load as DrawnLoad
from common.workload.timeline import Timeline
from splitfuse.bench.drive import drive
from splitfuse.bench.processor import ProcessorClock
from splitfuse.bench.sse_client import Endpoint, RequestFailed, complete

GREEDY_PROMPT = "The capital of France is"
GREEDY_TOKENS = 24

Spell = Callable[[Sequence[int]], str]  # token ids as text, for servers that take nothing else


def speller(tokenizer: Tokenizer) -> Spell:
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True)


def greedy_text(server: Server) -> str:
    """What the server makes of a known prompt: equal models at equal precision say the same."""
    body = _body(server, GREEDY_PROMPT, GREEDY_TOKENS) | (
        {} if server.peer.openai_only else {"ignore_eos": False}
    )
    content = msgspec.json.encode(body)
    try:
        return asyncio.run(complete(_endpoint(server), content, keep_text=True)).text
    except RequestFailed as failure:
        raise ServerFailed(f"{server.peer.name}: {failure}") from failure


def run_load(server: Server, load: Load, asks: Sequence[Ask], spell: Spell) -> Measures:
    """All `asks`, `load.clients` at once.

    Raises:
        ServerFailed: not one was answered.
    """
    drawn = DrawnLoad([ask.shape for ask in asks], [0.0] * load.clients, is_closed=True)
    bodies = [msgspec.json.encode(_body_of(server, ask, spell)) for ask in asks]
    timelines: list[Timeline] = []
    clock = ProcessorClock(server.tree)
    drive(drawn, bodies, _endpoint(server), timelines.append)
    shares = clock.shares()
    if all(timeline.failure for timeline in timelines):
        raise ServerFailed(f"{server.peer.name}: load {load.name}: {timelines[0].failure}")
    return measure(timelines, shares.others, shares.client)


def _endpoint(server: Server) -> Endpoint:
    return Endpoint("127.0.0.1", server.port)


def _body_of(server: Server, ask: Ask, spell: Spell) -> dict[str, Any]:
    prompt = spell(ask.prompt) if server.peer.openai_only else list(ask.prompt)
    return _body(server, prompt, ask.output_tokens)


def _body(server: Server, prompt: str | list[int], output_tokens: int) -> dict[str, Any]:
    body = {
        "model": server.model,
        "prompt": prompt,
        "max_tokens": output_tokens,
        "temperature": 0,
        "stream": True,
    }
    if server.peer.openai_only:
        return body
    return body | {"ignore_eos": True, "stream_options": {"include_usage": True}}
