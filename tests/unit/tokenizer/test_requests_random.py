"""Random fates: whatever happens on the way, a client reads the text that it would have anyway."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from common.link import Peer, PeerChanged, PeerDown, PeerUp, Received
from common.messages import (
    AnyMessage,
    CancelRequest,
    GenerateRequest,
    Heartbeat,
    Limits,
    LiveRequests,
    RequestFailed,
    SamplingParams,
    TextDeltas,
    TextOptions,
    TextPrompt,
    TokenDelta,
    TokenDeltas,
    TokenizeRequest,
    UnknownRequests,
)
from common.token_ids import pack_ids, unpack_ids
from services.tokenizer.events import Encode, Encoded, Event, Send, SendRefused, Tick
from services.tokenizer.model_info import ModelInfo
from services.tokenizer.requests import TokenizerState
from tests.unit.tokenizer import models

GATEWAYS = tuple(Peer("gateway", f"gateway-{i}", f"g{i}") for i in range(2))
SCHEDULERS = tuple(Peer("scheduler", f"scheduler-{i}", f"s{i}") for i in range(2))
READY = Heartbeat(True, False, 0, Limits("x", 1000, 5000, 512))
OPTIONS = TextOptions(stop=("fox", "e q"))
END = 2


def output_of(prompt: str) -> list[int]:
    """What the model says to a prompt, whoever runs it and however often."""
    words = random.Random(prompt).choices("".join(models.TEXTS).split(), k=8)
    return [*models.byte_level().encode(" ".join(words)).ids, END]


class Scheduler:
    """Runs what it is sent; forgets everything when it is lost."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.is_up = False
        self.running: dict[str, tuple[GenerateRequest, int]] = {}  # with num_output_tokens

    def take(self, message: AnyMessage) -> None:
        match message:
            case GenerateRequest():
                self.running[message.request_id] = (message, len(unpack_ids(message.output_ids)))
            case CancelRequest(request_id, _):
                self.running.pop(request_id, None)
            case LiveRequests(request_ids):
                self.running = {
                    name: self.running[name] for name in self.running if name in request_ids
                }

    def step(self, num_tokens: int) -> TokenDeltas:
        deltas = []
        for name, (request, num_before) in list(self.running.items()):
            prompt = models.byte_level().decode(list(unpack_ids(request.prompt_ids)))
            output = output_of(prompt)
            ids = output[num_before : num_before + num_tokens]
            is_last = num_before + len(ids) == len(output)
            finish, stop = ("stop", END) if is_last else (None, None)
            deltas.append(
                TokenDelta(
                    name,
                    num_before,
                    pack_ids(ids),
                    finish_reason=finish,  # type: ignore[arg-type]
                    stop_token_id=stop,
                )
            )
            self.running[name] = (request, num_before + len(ids))
            if is_last:
                del self.running[name]
        return TokenDeltas(tuple(deltas))


class World:
    def __init__(self) -> None:
        info = ModelInfo("m", max_token_id=419, max_model_len=400, vocab_size=500, eos_ids=(END,))
        self.state = TokenizerState(info, models.encoder("byte level").vocabulary, 5.0)
        self.now = 0.0
        self.full: set[str] = set()
        self.schedulers = {peer.instance_id: Scheduler(peer) for peer in SCHEDULERS}
        self.encoding: list[Encode] = []
        self.asked: dict[tuple[str, str], str] = {}  # prompts by gateway and id
        self.text: dict[tuple[str, str], str] = {}
        self.ids: dict[tuple[str, str], list[int]] = {}
        self.ended: dict[tuple[str, str], str] = {}  # finish reason or failure code
        for gateway in GATEWAYS:
            self.feed(PeerUp(gateway))

    def feed(self, event: Event) -> None:
        events = [event]
        while events:
            actions = [a for e in events for a in self.state.handle(e, self.now)]
            events = []
            for action in actions:
                match action:
                    case Encode():
                        self.encoding.append(action)
                    case Send(_, instance_id, _) if instance_id in self.full:
                        events.append(SendRefused(action))
                    case Send("scheduler", instance_id, message):
                        self.schedulers[instance_id].take(message)
                    case Send("gateway", instance_id, message):
                        self.read(instance_id, message)

    def read(self, gateway: str, message: AnyMessage) -> None:
        """As a gateway does: nothing may come twice, late or with a gap."""
        match message:
            case TextDeltas(deltas):
                for delta in deltas:
                    key = (gateway, delta.request_id)
                    assert key not in self.ended
                    assert delta.num_output_tokens == len(self.ids[key])
                    self.ids[key] += unpack_ids(delta.token_ids)
                    self.text[key] += delta.text
                    if delta.finish_reason is not None:
                        self.ended[key] = delta.finish_reason
            case RequestFailed(request_id, code):
                assert (gateway, request_id) not in self.ended
                self.ended[gateway, request_id] = code
            case UnknownRequests(request_ids):
                # Only what ended while the gateway asked; it has read the end before this.
                assert all((gateway, request_id) in self.ended for request_id in request_ids)

    def ask(self, gateway: Peer) -> None:
        key = (gateway.instance_id, f"r{len(self.asked)}")
        self.asked[key] = f"prompt {len(self.asked)}"
        self.text[key], self.ids[key] = "", []
        request = TokenizeRequest(key[1], TextPrompt(self.asked[key]), SamplingParams(), OPTIONS)
        self.feed(Received(gateway, request))

    def encode(self) -> None:
        jobs, self.encoding = self.encoding, []
        for job in reversed(jobs):  # threads finish in any order
            assert isinstance(job.prompt, TextPrompt)
            ids = models.byte_level().encode(job.prompt.text).ids
            self.feed(Encoded(job.ticket, pack_ids(ids)))

    def toggle_scheduler(self, scheduler: Scheduler) -> None:
        scheduler.is_up = not scheduler.is_up
        scheduler.running.clear()
        if scheduler.is_up:
            self.feed(PeerUp(scheduler.peer))
            self.feed(PeerChanged(scheduler.peer, READY))
        else:
            self.feed(PeerDown(scheduler.peer, "silent"))

    def step(self, scheduler: Scheduler, num_tokens: int) -> None:
        if scheduler.is_up and scheduler.running:
            self.feed(Received(scheduler.peer, scheduler.step(num_tokens)))

    def forget_one(self, scheduler: Scheduler) -> None:
        """A bug at the scheduler, found by its answer to the next audit."""
        if scheduler.running:
            name = next(iter(scheduler.running))
            del scheduler.running[name]
            self.feed(Received(scheduler.peer, UnknownRequests((name,))))

    def audit(self, gateway: Peer) -> None:
        wanted = [i for g, i in self.asked if g == gateway.instance_id and (g, i) not in self.ended]
        self.feed(Received(gateway, LiveRequests(tuple(wanted))))

    def play(self, op: str, which: int, amount: int) -> None:
        gateway = GATEWAYS[which]
        scheduler = self.schedulers[SCHEDULERS[which].instance_id]
        match op:
            case "ask":
                self.ask(gateway)
            case "encode":
                self.encode()
            case "toggle scheduler":
                self.toggle_scheduler(scheduler)
            case "step":
                self.step(scheduler, amount)
            case "forget":
                self.forget_one(scheduler)
            case "audit":
                self.audit(gateway)
            case "full":
                self.full ^= {(gateway if amount % 2 else scheduler.peer).instance_id}
            case "tick":
                self.now += amount
                self.feed(Tick())

    def settle(self) -> None:
        """Peace: every peer is there and reads."""
        self.full = set()
        self.encode()
        for scheduler in self.schedulers.values():
            if not scheduler.is_up:
                self.toggle_scheduler(scheduler)
        for _ in range(100):
            self.feed(Tick())
            for scheduler in self.schedulers.values():
                self.step(scheduler, 3)


def undisturbed(prompt: str) -> tuple[str, list[int]]:
    """Text and ids when nothing happens on the way."""
    world = World()
    world.toggle_scheduler(world.schedulers["s0"])
    world.asked["g0", "x"], world.text["g0", "x"], world.ids["g0", "x"] = prompt, "", []
    request = TokenizeRequest("x", TextPrompt(prompt), SamplingParams(), OPTIONS)
    world.feed(Received(GATEWAYS[0], request))
    world.encode()
    world.step(world.schedulers["s0"], 1000)
    assert world.ended == {("g0", "x"): "stop"}
    return world.text["g0", "x"], world.ids["g0", "x"]


OPS = ("ask", "encode", "toggle scheduler", "step", "step", "forget", "audit", "full", "tick")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(OPS), st.integers(0, 1), st.integers(1, 4)),
        min_size=15,
        max_size=100,
    )
)
def test_every_request_ends_once_and_with_the_text_that_it_would_have_had(
    history: list[tuple[str, int, int]],
) -> None:
    world = World()
    for op, which, amount in history:
        world.play(op, which, amount)
    world.settle()

    assert world.ended.keys() == world.asked.keys()
    assert (world.state.num_requests, world.state.has_unsent) == (0, False)
    assert not any(scheduler.running for scheduler in world.schedulers.values())
    for key, prompt in world.asked.items():
        text, ids = undisturbed(prompt)
        if world.ended[key] == "stop":
            assert (world.text[key], world.ids[key]) == (text, ids)
        else:  # it lost its scheduler too often, or waited too long
            assert world.ended[key] in ("internal_error", "unavailable")
            assert text.startswith(world.text[key])
