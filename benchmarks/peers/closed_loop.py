"""Put a load on a server and note what the clients and the processors see."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
from tokenizers import Tokenizer

from benchmarks.peers.loads import Ask, Load
from benchmarks.peers.measures import Measures, measure
from benchmarks.peers.server import Server, ServerFailed
from benchmarks.peers.sse_client import Answer, RequestFailed, complete

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
    try:
        return asyncio.run(complete(server.port, body)).text
    except RequestFailed as failure:
        raise ServerFailed(f"{server.peer.name}: {failure}") from failure


def run_load(
    server: Server, load: Load, asks: Sequence[Ask], cores: Sequence[int], spell: Spell
) -> Measures:
    """All `asks`, `load.clients` at once.

    Raises:
        ServerFailed: not one was answered.
    """
    before = _Clocks(server, cores)
    answers, failures = asyncio.run(_closed_loop(server, load, asks, spell))
    after = _Clocks(server, cores)
    if not answers:
        raise ServerFailed(f"{server.peer.name}: load {load.name}: {failures[0]}")
    return measure(answers, len(failures), after.foreign_share(before), after.client_share(before))


async def _closed_loop(
    server: Server, load: Load, asks: Sequence[Ask], spell: Spell
) -> tuple[list[Answer], list[RequestFailed]]:
    waiting = iter([_body_of(server, ask, spell) for ask in asks])
    answers: list[Answer] = []
    failures: list[RequestFailed] = []

    async def client() -> None:
        for body in waiting:  # shared: each takes the next
            try:
                answers.append(await complete(server.port, body))
            except RequestFailed as failure:
                failures.append(failure)

    await asyncio.gather(*(client() for _ in range(load.clients)))
    return answers, failures


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


class _Clocks:
    """Processor time used up to now: by the server, by us, by anybody on these cores."""

    def __init__(self, server: Server, cores: Sequence[int]) -> None:
        own = psutil.Process().cpu_times()
        self.at = time.monotonic()
        self.num_cores = len(cores)
        self.server_s = server.tree.cpu_s()
        self.client_s = own.user + own.system
        per_core = psutil.cpu_times(percpu=True)
        self.busy_s = sum(busy_seconds(per_core[core]._asdict()) for core in cores)

    def client_share(self, before: "_Clocks") -> float:
        return (self.client_s - before.client_s) / self._available_s(before)

    def foreign_share(self, before: "_Clocks") -> float:
        """Clocks of processes and of cores tick apart, so it may come out a little below 0."""
        ours = self.client_s - before.client_s + self.server_s - before.server_s
        return (self.busy_s - before.busy_s - ours) / self._available_s(before)

    def _available_s(self, before: "_Clocks") -> float:
        return (self.at - before.at) * self.num_cores


def busy_seconds(times: dict[str, float]) -> float:
    """Of one core; what a hypervisor stole counts, what guests used is counted in `user`."""
    idle = ("idle", "iowait", "guest", "guest_nice")
    return sum(seconds for name, seconds in times.items() if name not in idle)
