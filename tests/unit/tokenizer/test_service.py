"""The shell between two links in memory; the test plays gateway and scheduler."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from common.config import TokenizerConfig, load_config
from common.errors import ConfigError, ProtocolError
from common.link import LinkEvent, Peer
from common.messages import (
    AnyMessage,
    CancelRequest,
    ChatPrompt,
    GenerateRequest,
    Heartbeat,
    Limits,
    Prompt,
    RequestFailed,
    SamplingParams,
    TextDeltas,
    TextOptions,
    TextPrompt,
    TokenDelta,
    TokenDeltas,
    TokenizeRequest,
)
from common.token_ids import pack_ids
from services.tokenizer import service as shell
from services.tokenizer.encode import Encoder
from services.tokenizer.service import TokenizerService
from tests.support.in_loop import in_loop
from tests.support.memory_link import MemoryLink
from tests.unit.tokenizer import models

GATEWAY = Peer("gateway", "gateway-0", "g0")
SCHEDULER = Peer("scheduler", "scheduler-0", "s0")
DEFAULT = TextOptions()
READY = Heartbeat(True, False, 0, Limits("x", 1000, 5000, 512))


class GatewayLink(MemoryLink):
    """Knows how often it was read, and how much text fits a message."""

    num_received = 0
    max_chars = 1000

    def send(self, instance_id: str, message: AnyMessage) -> bool:
        if isinstance(message, TextDeltas) and len(message.deltas[0].text) > self.max_chars:
            raise ProtocolError("TextDeltas are too large", reason="oversized")
        return super().send(instance_id, message)

    async def receive(self) -> LinkEvent:
        event = await super().receive()
        self.num_received += 1
        return event


class Mesh:
    def __init__(self, service: TokenizerService, up: GatewayLink, down: MemoryLink) -> None:
        self.service = service
        self.gateways = up
        self.schedulers = down

    def ask(self, request_id: str, prompt: Prompt, text: TextOptions = DEFAULT) -> None:
        request = TokenizeRequest(request_id, prompt, SamplingParams(), text)
        self.gateways.deliver(GATEWAY, request)

    async def to_gateway(self, count: int = 1) -> AnyMessage:
        return (await self.gateways.wait_sent(count))[count - 1][1]

    async def to_scheduler(self, count: int) -> list[GenerateRequest]:
        """The first requests sent on; other messages do not count."""
        sent: list[GenerateRequest] = []
        while len(sent) < count:
            messages = await self.schedulers.wait_sent(len(self.schedulers.sent) + 1)
            sent = [m for _, m in messages if isinstance(m, GenerateRequest)]
        return sent


async def until(condition: object) -> None:
    """Give the loop turns until `condition()` holds; the test's own limit ends it."""
    assert callable(condition)
    while not condition():  # noqa: ASYNC110  conditions of threads have no event
        await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_model(tmp_path_factory.mktemp("model"))


def config_for(model_dir: Path) -> TokenizerConfig:
    return load_config(TokenizerConfig, ["--model", str(model_dir), "--served-model-name", "tiny"])


@asynccontextmanager
async def running(model_dir: Path) -> AsyncIterator[Mesh]:
    up, down = GatewayLink(), MemoryLink()
    identity = Peer("tokenizer", "tokenizer-0", "t0")
    service = TokenizerService(config_for(model_dir), identity, lambda: (up, down))
    await service.start()
    task = asyncio.create_task(service.run())
    try:
        up.peer_up(GATEWAY)
        down.peer_up(SCHEDULER, READY)
        await until(lambda: service.is_ready)
        yield Mesh(service, up, down)
    finally:
        task.cancel()
        await asyncio.wait({task})
        await service.stop("over")


@in_loop()
async def test_text_goes_down_as_ids_and_comes_back_as_text(model_dir: Path) -> None:
    async with running(model_dir) as mesh:
        mesh.ask("r", TextPrompt("fox"))
        [request] = await mesh.to_scheduler(1)
        assert request.prompt_ids == pack_ids(models.byte_level().encode("fox").ids)
        assert request.sampling.temperature == 1.0  # the client's: nothing was left out

        ids = pack_ids([*models.byte_level().encode(" dog").ids, 2])
        last = TokenDelta(request.request_id, 0, ids, finish_reason="stop", stop_token_id=2)
        mesh.schedulers.deliver(SCHEDULER, TokenDeltas((last,)))

        answer = await mesh.to_gateway()
        assert isinstance(answer, TextDeltas)
        assert (answer.deltas[0].text, answer.deltas[0].finish_reason) == (" dog", "stop")
        assert mesh.service.is_idle


@in_loop()
async def test_a_bad_prompt_is_answered_and_the_next_one_served(model_dir: Path) -> None:
    async with running(model_dir) as mesh:
        mesh.ask("bad", ChatPrompt(b'[{"role": "pirate", "content": "Arr"}]'))
        failure = await mesh.to_gateway()
        assert isinstance(failure, RequestFailed)
        assert failure.code == "invalid_request"
        assert failure.message.endswith("Unknown role: pirate")

        mesh.ask("good", ChatPrompt(b'[{"role": "user", "content": "hi"}]'))
        assert await mesh.to_scheduler(1)


@in_loop()
async def test_a_bug_in_the_encoder_costs_one_request(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(model_dir) as mesh:
        with monkeypatch.context() as patch:
            patch.setattr(Encoder, "encode", lambda *_: 1 // 0)
            mesh.ask("unlucky", TextPrompt("fox"))
            failure = await mesh.to_gateway()
        assert isinstance(failure, RequestFailed)
        assert failure.code == "internal_error"
        mesh.ask("lucky", TextPrompt("fox"))
        assert await mesh.to_scheduler(1)


@in_loop()
async def test_gateways_are_not_read_while_too_many_prompts_are_being_encoded(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "MAX_NUM_ENCODING", 2)
    may_go_on = threading.Event()
    encode = Encoder.encode

    def encode_slowly(*args: object) -> bytes:
        assert may_go_on.wait(timeout=10)
        return encode(*args)  # type: ignore[arg-type]

    async with running(model_dir) as mesh:
        monkeypatch.setattr(Encoder, "encode", encode_slowly)
        num_before = mesh.gateways.num_received
        for name in "abcde":
            mesh.ask(name, TextPrompt("fox"))
        await until(lambda: mesh.gateways.num_received == num_before + 2)
        for _ in range(10):
            await asyncio.sleep(0)
        assert mesh.gateways.num_received == num_before + 2

        may_go_on.set()
        assert len(await mesh.to_scheduler(5)) == 5


@in_loop()
async def test_prompts_whose_requests_are_gone_count_until_they_are_encoded(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "MAX_NUM_ENCODING", 2)
    may_go_on = threading.Event()

    def encode_slowly(*_: object) -> bytes:
        assert may_go_on.wait(timeout=10)
        return pack_ids([5])

    async with running(model_dir) as mesh:
        monkeypatch.setattr(Encoder, "encode", encode_slowly)
        num_before = mesh.gateways.num_received
        for name in "abcde":
            mesh.ask(name, TextPrompt("fox"))
            mesh.gateways.deliver(GATEWAY, CancelRequest(name, "client_disconnected"))
        await until(lambda: mesh.gateways.num_received == num_before + 3)
        for _ in range(10):
            await asyncio.sleep(0)
        assert mesh.gateways.num_received == num_before + 3

        may_go_on.set()
        await until(lambda: mesh.gateways.num_received == num_before + 10)


@in_loop()
async def test_a_message_that_no_link_can_carry_harms_no_other(model_dir: Path) -> None:
    async with running(model_dir) as mesh:
        for prompt in ("fox " * 20, "dog"):
            mesh.ask(prompt[:3], TextPrompt(prompt), TextOptions(echo=True))
        requests = await mesh.to_scheduler(2)
        mesh.gateways.max_chars = 20
        for request in requests:
            delta = TokenDelta(request.request_id, 0, pack_ids([5]))
            mesh.schedulers.deliver(SCHEDULER, TokenDeltas((delta,)))

        answer = await mesh.to_gateway()
        assert isinstance(answer, TextDeltas)
        assert [delta.request_id for delta in answer.deltas] == ["dog"]


@in_loop()
async def test_what_a_full_gateway_refused_arrives_when_there_is_room(model_dir: Path) -> None:
    async with running(model_dir) as mesh:
        mesh.ask("r", TextPrompt("fox"))
        [request] = await mesh.to_scheduler(1)
        mesh.gateways.full.add("g0")
        ids = models.byte_level().encode("one two three").ids
        for num_before, token_id in enumerate(ids):
            delta = TokenDelta(request.request_id, num_before, pack_ids([token_id]))
            mesh.schedulers.deliver(SCHEDULER, TokenDeltas((delta,)))
        await until(lambda: not mesh.service.is_idle)

        mesh.gateways.full.clear()

        texts: list[str] = []
        while "".join(texts) != "one two three":
            await mesh.to_gateway(len(texts) + 1)
            messages = [m for _, m in mesh.gateways.sent if isinstance(m, TextDeltas)]
            texts = ["".join(delta.text for delta in m.deltas) for m in messages]


@in_loop()
async def test_limits_are_announced_at_once_and_so_is_draining(model_dir: Path) -> None:
    async with running(model_dir) as mesh:
        status = Heartbeat(True, False, 0, Limits("tiny", 128, 5000, 500))
        assert mesh.gateways.status == status
        mesh.ask("r", TextPrompt("fox"))
        await mesh.to_scheduler(1)

        mesh.service.drain()

        assert mesh.gateways.status is not None
        assert mesh.gateways.status.draining
        assert (mesh.service.is_ready, mesh.service.is_idle) == (False, False)
        mesh.gateways.peer_down(GATEWAY)
        await until(lambda: mesh.service.is_idle)
    assert (mesh.gateways.closed, mesh.schedulers.closed) == ("over", "over")


@in_loop()
async def test_the_load_is_announced_too(model_dir: Path) -> None:
    async with running(model_dir) as mesh:
        mesh.ask("r", TextPrompt("fox"))
        await until(lambda: mesh.gateways.status and mesh.gateways.status.num_requests == 1)


@in_loop()
async def test_a_missing_model_is_named_before_any_link_is_opened(tmp_path: Path) -> None:
    opened: list[str] = []

    def open_links() -> tuple[MemoryLink, MemoryLink]:
        opened.append("links")
        return MemoryLink(), MemoryLink()

    identity = Peer("tokenizer", "tokenizer-0", "t0")
    service = TokenizerService(config_for(tmp_path / "none"), identity, open_links)
    with pytest.raises(ConfigError, match="no such directory"):
        await service.start()
    await service.stop("failed")
    assert not opened
