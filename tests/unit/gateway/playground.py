"""A gateway in this process: the real HTTP server in front, a link in memory behind.

The test plays the tokenizer: it reads what the gateway sent and delivers deltas.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import httpx

from common.config import GatewayConfig
from common.link import Peer
from common.messages import (
    FinishReason,
    Heartbeat,
    Limits,
    TextDelta,
    TextDeltas,
    TextLogprob,
    TokenizeRequest,
)
from common.token_ids import pack_ids
from services.gateway.service import GatewayService
from tests.support.memory_link import MemoryLink

Kind = TypeVar("Kind")

LIMITS = Limits(model="tiny", max_model_len=2048, kv_capacity_tokens=8192, vocab_size=1000)
DEADLINE_S = 10.0


def tokenizer(number: int = 0) -> Peer:
    return Peer("tokenizer", f"tokenizer-{number}", f"instance-{number}")


def ready(num_requests: int = 0, draining: bool = False, model: str = "tiny") -> Heartbeat:
    limits = Limits(model, LIMITS.max_model_len, LIMITS.kv_capacity_tokens, LIMITS.vocab_size)
    return Heartbeat(ready=True, draining=draining, num_requests=num_requests, limits=limits)


def a_delta(
    request_id: str,
    before: int,
    text: str,
    ids: Sequence[int] = (),
    finish: FinishReason | None = None,
    logprobs: tuple[TextLogprob, ...] = (),
    stop_reason: str | int | None = None,
    num_cached_tokens: int = 0,
) -> TextDelta:
    """One token id per call unless `ids` says otherwise; prompts are 5 tokens long."""
    return TextDelta(
        request_id=request_id,
        num_output_tokens=before,
        text=text,
        token_ids=pack_ids(ids or [7]),
        logprobs=logprobs,
        finish_reason=finish,
        stop_reason=stop_reason,
        num_prompt_tokens=5,
        num_cached_tokens=num_cached_tokens,
    )


class Playground:
    """The parts of one running gateway, and shorthands to play its tokenizers."""

    def __init__(
        self, service: GatewayService, link: MemoryLink, client: httpx.AsyncClient
    ) -> None:
        self.service = service
        self.link = link
        self.client = client

    @property
    def url(self) -> str:
        return self.service.addresses["url"]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 - any condition, not one event
                await asyncio.sleep(0.002)

    async def tokenizer_up(self, number: int = 0, heartbeat: Heartbeat | None = None) -> Peer:
        peer = tokenizer(number)
        before = self.service.mesh.state.num_tokenizers
        self.link.peer_up(peer, heartbeat or ready())
        await self.until(lambda: self.service.mesh.state.num_tokenizers > before)
        if heartbeat is None:
            await self.until(lambda: self.service.mesh.state.is_ready)
        return peer

    def sent(self, kind: type[Kind], to: int | None = None) -> list[Kind]:
        return [
            message
            for instance_id, message in self.link.sent
            if isinstance(message, kind) and to in (None, int(instance_id.split("-")[1]))
        ]

    async def requests(self, count: int = 1, to: int | None = None) -> list[TokenizeRequest]:
        """The TokenizeRequests so far, once there are `count`."""
        await self.until(lambda: len(self.sent(TokenizeRequest, to)) >= count)
        return self.sent(TokenizeRequest, to)

    def deliver(self, *deltas: TextDelta, by: int = 0) -> None:
        self.link.deliver(tokenizer(by), TextDeltas(deltas))

    def answer(self, request: TokenizeRequest, *words: str, finish: FinishReason = "stop") -> None:
        """One delta and token per word; the last one ends the request."""
        for index, word in enumerate(words):
            last = index == len(words) - 1
            self.deliver(a_delta(request.request_id, index, word, finish=finish if last else None))

    async def idle(self) -> None:
        await self.until(lambda: self.service.is_idle)


@asynccontextmanager
async def playground(
    link: MemoryLink | None = None, **options: object
) -> AsyncIterator[Playground]:
    """A gateway that serves, on a free port unless `options` of its config say otherwise."""
    link = link or MemoryLink()
    config = GatewayConfig.model_validate({"port": 0, **options})
    service = GatewayService(config, Peer("gateway", "gateway-0", "g0"), lambda *_: link)
    await service.start()
    serving = asyncio.create_task(service.run())
    base_url = service.addresses["url"]
    transport = None
    if config.uds is not None:
        transport = httpx.AsyncHTTPTransport(uds=str(config.uds))
        base_url = "http://gateway"
    client = httpx.AsyncClient(base_url=base_url, timeout=DEADLINE_S, transport=transport)
    try:
        async with client:
            yield Playground(service, link, client)
    finally:
        serving.cancel()
        await asyncio.wait({serving})
        await service.stop("test over")
