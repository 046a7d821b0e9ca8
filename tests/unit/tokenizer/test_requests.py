"""Events in, actions out: no loop, no socket, no clock."""

from typing import TypeVar

import pytest

from common.errors import FailureCode, RequestError
from common.link import Peer, PeerChanged, PeerDown, PeerUp, Received
from common.messages import (
    AnyMessage,
    CancelRequest,
    GenerateRequest,
    Heartbeat,
    Limits,
    LiveRequests,
    Message,
    RequestFailed,
    SamplingParams,
    TextDelta,
    TextDeltas,
    TextOptions,
    TextPrompt,
    TokenDelta,
    TokenDeltas,
    TokenizeRequest,
    UnknownRequests,
)
from common.token_ids import pack_ids, unpack_ids
from services.tokenizer import requests
from services.tokenizer.events import (
    Action,
    Drain,
    Encode,
    Encoded,
    EncodeFailed,
    Event,
    Send,
    SendRefused,
    Tick,
    Warn,
)
from services.tokenizer.model_info import ModelInfo
from services.tokenizer.requests import TokenizerState
from tests.unit.tokenizer import models

GATEWAY = Peer("gateway", "gateway-0", "g0")
OTHER_GATEWAY = Peer("gateway", "gateway-1", "g1")
SCHEDULER = Peer("scheduler", "scheduler-0", "s0")
OTHER_SCHEDULER = Peer("scheduler", "scheduler-1", "s1")
LIMITS = Limits("x", 1000, 5000, 512)
END = 2
DEFAULT = TextOptions()

AMessage = TypeVar("AMessage", bound=Message)


def ids_of(text: str) -> list[int]:
    return models.byte_level().encode(text).ids


class Mesh:
    """Plays links, encoder and clock around a `TokenizerState`."""

    def __init__(self, *schedulers: Peer) -> None:
        info = ModelInfo("m", max_token_id=419, max_model_len=100, vocab_size=500, eos_ids=(END,))
        self.state = TokenizerState(info, models.encoder("byte level").vocabulary, 10.0)
        self.now = 0.0
        self.full: set[str] = set()
        self.sent: list[tuple[str, AnyMessage]] = []
        self.warnings: list[Warn] = []
        self.encoding: list[Encode] = []
        for gateway in (GATEWAY, OTHER_GATEWAY):
            self.feed(PeerUp(gateway))
        for scheduler in schedulers:
            self.scheduler_up(scheduler)

    def feed(self, event: Event) -> None:
        refused = self._perform(self.state.handle(event, self.now))
        while refused:
            actions = [
                a for send in refused for a in self.state.handle(SendRefused(send), self.now)
            ]
            refused = self._perform(actions)

    def _perform(self, actions: list[Action]) -> list[Send]:
        refused: list[Send] = []
        for action in actions:
            match action:
                case Send(_, instance_id, _) if instance_id in self.full:
                    refused.append(action)
                case Send(_, instance_id, message):
                    self.sent.append((instance_id, message))
                case Encode():
                    self.encoding.append(action)
                case Warn():
                    self.warnings.append(action)
        return refused

    def scheduler_up(self, peer: Peer, heartbeat: Heartbeat | None = None) -> None:
        self.feed(PeerUp(peer))
        self.feed(PeerChanged(peer, heartbeat or Heartbeat(True, False, 0, LIMITS)))

    def ask(
        self,
        request_id: str = "r",
        *,
        gateway: Peer = GATEWAY,
        prompt: str = "hi",
        text: TextOptions = DEFAULT,
        sampling: SamplingParams | None = None,
        resume: list[int] | None = None,
        encode: bool = True,
    ) -> None:
        sampling = sampling or SamplingParams()
        resumed = pack_ids(resume or [])
        request = TokenizeRequest(
            request_id,
            TextPrompt(prompt),
            sampling,
            text,
            3,
            "tenant",
            resumed,
            target_tbt_ms=40.0,
            stream_interval=5,
        )
        self.feed(Received(gateway, request))
        if encode:
            self.encode_all()

    def encode_all(self) -> None:
        jobs, self.encoding = self.encoding, []
        for job in jobs:
            assert isinstance(job.prompt, TextPrompt)
            self.feed(Encoded(job.ticket, pack_ids(ids_of(job.prompt.text))))

    def emit(
        self,
        sent_as: str,
        num_before: int,
        ids: list[int],
        *,
        scheduler: Peer = SCHEDULER,
        finish: str | None = None,
    ) -> None:
        delta = TokenDelta(
            sent_as,
            num_before,
            pack_ids(ids),
            finish_reason=finish,  # type: ignore[arg-type]
            stop_token_id=ids[-1] if finish == "stop" else None,
        )
        self.feed(Received(scheduler, TokenDeltas((delta,))))

    def to(self, peer: Peer, kind: type[AMessage]) -> list[AMessage]:
        return [m for i, m in self.sent if i == peer.instance_id and isinstance(m, kind)]

    def generated(self, peer: Peer = SCHEDULER) -> GenerateRequest:
        return self.to(peer, GenerateRequest)[-1]

    def text_at(self, gateway: Peer = GATEWAY) -> str:
        return "".join(delta.text for delta in self.deltas_at(gateway))

    def deltas_at(self, gateway: Peer = GATEWAY) -> list[TextDelta]:
        return [delta for message in self.to(gateway, TextDeltas) for delta in message.deltas]

    def failure(self, gateway: Peer = GATEWAY) -> RequestFailed:
        return self.to(gateway, RequestFailed)[-1]


# ── the way through ──────────────────────────────────────────────────────────────────────────────


def test_a_request_is_encoded_resolved_and_sent_on() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.ask(prompt="hi", sampling=SamplingParams(temperature=0.5))

    sent = mesh.generated()

    assert list(unpack_ids(sent.prompt_ids)) == ids_of("hi")
    assert sent.sampling == SamplingParams(
        temperature=0.5, max_tokens=100 - len(ids_of("hi")), stop_token_ids=(END,)
    )
    assert (sent.output_ids, sent.priority, sent.tenant) == (b"", 3, "tenant")
    assert (sent.target_tbt_ms, sent.stream_interval) == (40.0, 5)


def test_each_token_is_looked_at_where_a_stop_string_may_end_the_work() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.ask(text=TextOptions(stop=("x",)))

    assert mesh.generated().stream_interval == 1


def test_text_comes_back_under_the_gateways_id_until_the_request_is_over() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.ask()
    sent_as = mesh.generated().request_id

    mesh.emit(sent_as, 0, ids_of("fox"))
    mesh.emit(sent_as, len(ids_of("fox")), [*ids_of(" dog"), END], finish="stop")

    assert mesh.text_at() == "fox dog"
    assert {delta.request_id for delta in mesh.deltas_at()} == {"r"}
    assert mesh.deltas_at()[-1].finish_reason == "stop"
    assert mesh.state.num_requests == 0


def test_one_step_makes_one_message_per_gateway() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.ask("a")
    mesh.ask("b")
    mesh.ask("a", gateway=OTHER_GATEWAY)
    names = [m.request_id for m in mesh.to(SCHEDULER, GenerateRequest)]
    assert len(set(names)) == 3  # though two gateways chose the same id

    deltas = tuple(TokenDelta(name, 0, pack_ids(ids_of("fox"))) for name in names)
    mesh.feed(Received(SCHEDULER, TokenDeltas(deltas)))

    [message] = mesh.to(GATEWAY, TextDeltas)
    assert [delta.request_id for delta in message.deltas] == ["a", "b"]
    [message] = mesh.to(OTHER_GATEWAY, TextDeltas)
    assert [delta.request_id for delta in message.deltas] == ["a"]


def test_long_texts_of_one_step_are_shared_among_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_NUM_CHARS", 10)
    mesh = Mesh(SCHEDULER)
    for name in "abcd":
        mesh.ask(name, prompt="long long " if name == "b" else "hi", text=TextOptions(echo=True))
    names = [m.request_id for m in mesh.to(SCHEDULER, GenerateRequest)]

    mesh.full = {"g0"}
    deltas = tuple(TokenDelta(name, 0, pack_ids(ids_of("fox"))) for name in names)
    mesh.feed(Received(SCHEDULER, TokenDeltas(deltas)))
    mesh.full = set()
    mesh.feed(Tick())

    texts = [[delta.text for delta in message.deltas] for message in mesh.to(GATEWAY, TextDeltas)]
    assert texts == [["hifox"], ["long long fox"], ["hifox", "hifox"]]


def test_a_stop_string_ends_the_request_and_cancels_it_downstream() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.ask(text=TextOptions(stop=(".",)))
    sent_as = mesh.generated().request_id

    mesh.emit(sent_as, 0, ids_of("fox. dog"))

    assert (mesh.text_at(), mesh.deltas_at()[-1].stop_reason) == ("fox", ".")
    assert mesh.to(SCHEDULER, CancelRequest) == [CancelRequest(sent_as, "stop_string")]
    mesh.emit(sent_as, len(ids_of("fox. dog")), ids_of("late"))
    assert mesh.text_at() == "fox"


def test_a_prompt_that_cannot_be_served_fails_with_its_reason() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.ask(prompt="~" * 100)
    assert mesh.failure().code == "context_length_exceeded"
    assert (mesh.failure().request_id, mesh.failure().param) == ("r", "prompt")
    mesh.ask(encode=False)
    mesh.feed(EncodeFailed(2, RequestError(FailureCode.INVALID_REQUEST, "no", "messages")))
    assert mesh.failure() == RequestFailed("r", "invalid_request", "no", "messages")
    assert mesh.state.num_requests == 0
    assert mesh.state.counts.failures == {"context_length_exceeded": 1, "invalid_request": 1}


def test_an_empty_stop_string_is_the_clients_fault() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.ask(text=TextOptions(stop=("",)))
    assert mesh.failure().code == "invalid_request"


# ── schedulers come and go ───────────────────────────────────────────────────────────────────────


def test_limits_flow_upstream_once_a_scheduler_is_ready() -> None:
    mesh = Mesh()
    assert mesh.state.status == Heartbeat(ready=False, draining=False)
    mesh.scheduler_up(SCHEDULER)
    assert mesh.state.status == Heartbeat(True, False, 0, Limits("m", 100, 5000, 500))
    mesh.feed(Drain())
    assert mesh.state.status.draining


def test_a_scheduler_of_another_model_is_not_used_and_warned_about_once() -> None:
    mesh = Mesh()
    small = Heartbeat(True, False, 0, Limits("x", 1000, 5000, 300))
    mesh.scheduler_up(SCHEDULER, small)
    mesh.feed(PeerChanged(SCHEDULER, Heartbeat(True, False, 1, small.limits)))
    mesh.ask()
    assert not mesh.state.status.ready
    [warning] = mesh.warnings
    assert warning.fields == {"scheduler": "scheduler-0", "vocab_size": 300, "max_token_id": 419}
    assert not mesh.to(SCHEDULER, GenerateRequest)


def test_requests_are_shared_among_schedulers() -> None:
    mesh = Mesh(SCHEDULER, OTHER_SCHEDULER)
    for name in "abcd":
        mesh.ask(name)
    assert len(mesh.to(SCHEDULER, GenerateRequest)) == 2
    assert len(mesh.to(OTHER_SCHEDULER, GenerateRequest)) == 2


def test_a_lost_schedulers_requests_continue_elsewhere_behind_what_was_emitted() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.ask()
    fox = ids_of("fox")
    first = mesh.generated()
    mesh.emit(first.request_id, 0, fox)
    mesh.scheduler_up(OTHER_SCHEDULER)

    mesh.feed(PeerDown(SCHEDULER, "silent"))

    again = mesh.generated(OTHER_SCHEDULER)
    assert (again.prompt_ids, again.sampling) == (first.prompt_ids, first.sampling)
    assert list(unpack_ids(again.output_ids)) == fox
    dog = [*ids_of(" dog"), END]
    mesh.emit(again.request_id, len(fox), dog, scheduler=OTHER_SCHEDULER, finish="stop")
    assert mesh.text_at() == "fox dog"


def test_requests_wait_for_a_scheduler_in_the_order_of_their_arrival() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.ask("old")
    mesh.feed(PeerDown(SCHEDULER, "silent"))
    mesh.ask("new")
    assert mesh.state.num_waiting == 2

    mesh.scheduler_up(OTHER_SCHEDULER)

    names = [m.request_id for m in mesh.to(OTHER_SCHEDULER, GenerateRequest)]
    assert [name.partition("~")[0] for name in names] == ["old", "new"]


def test_waiting_ends_after_a_limit() -> None:
    mesh = Mesh()
    mesh.ask()
    mesh.now = requests.WAIT_LIMIT_S - 0.1
    mesh.feed(Tick())
    assert mesh.state.num_requests == 1
    mesh.now = requests.WAIT_LIMIT_S
    mesh.feed(Tick())
    assert (mesh.failure().code, mesh.state.num_requests) == ("unavailable", 0)


def test_a_request_that_keeps_losing_its_scheduler_fails() -> None:
    mesh = Mesh()
    mesh.ask()
    for _ in range(requests.MAX_NUM_RESENDS + 1):
        mesh.scheduler_up(SCHEDULER)
        mesh.feed(PeerDown(SCHEDULER, "silent"))
    assert (mesh.failure().code, mesh.state.num_requests) == ("internal_error", 0)
    assert mesh.state.counts.resends == requests.MAX_NUM_RESENDS


def test_a_request_that_makes_progress_may_lose_any_number_of_schedulers() -> None:
    mesh = Mesh()
    mesh.ask()
    for num_before in range(2 * requests.MAX_NUM_RESENDS):
        mesh.scheduler_up(SCHEDULER)
        mesh.emit(mesh.generated().request_id, num_before, ids_of("x"))
        mesh.feed(PeerDown(SCHEDULER, "silent"))
    assert mesh.state.num_requests == 1


def test_too_many_waiting_requests_are_refused_as_overload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(requests, "MAX_NUM_WAITING", 2)
    mesh = Mesh()
    for name in "abc":
        mesh.ask(name)
    assert (mesh.failure().request_id, mesh.failure().code) == ("c", "overloaded")
    assert mesh.state.num_requests == 2
    mesh.ask("stream of a lost tokenizer", resume=ids_of("fox"))
    assert mesh.state.num_requests == 3


def test_a_scheduler_that_forgot_a_request_gets_it_again() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.ask()
    sent_as = mesh.generated().request_id
    mesh.emit(sent_as, 0, ids_of("fox"))

    mesh.feed(Received(SCHEDULER, UnknownRequests((sent_as, "never heard of"))))

    assert list(unpack_ids(mesh.generated().output_ids)) == ids_of("fox")
    assert mesh.generated().request_id != sent_as


def test_a_refusal_that_is_not_about_the_request_sends_it_elsewhere() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.ask()
    mesh.feed(PeerChanged(SCHEDULER, Heartbeat(True, True, 0, LIMITS)))
    mesh.scheduler_up(OTHER_SCHEDULER)
    refusal = RequestFailed(mesh.generated().request_id, "unavailable", "I am leaving")

    mesh.feed(Received(SCHEDULER, refusal))

    assert mesh.generated(OTHER_SCHEDULER)
    assert not mesh.to(GATEWAY, RequestFailed)


def test_a_failure_downstream_reaches_the_gateway_under_its_own_id() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.ask()
    sent_as = mesh.generated().request_id
    mesh.feed(Received(SCHEDULER, RequestFailed(sent_as, "overloaded", "full", None)))
    assert mesh.failure() == RequestFailed("r", "overloaded", "full")
    assert mesh.state.num_requests == 0


# ── answers that do not fit ──────────────────────────────────────────────────────────────────────


def test_repeats_and_answers_of_others_are_ignored() -> None:
    mesh = Mesh(SCHEDULER, OTHER_SCHEDULER)
    mesh.ask()
    sent_as = mesh.generated().request_id
    mesh.emit(sent_as, 0, ids_of("fox"))

    mesh.emit(sent_as, 0, ids_of("fox"))
    mesh.emit(sent_as, len(ids_of("fox")), ids_of("x"), scheduler=OTHER_SCHEDULER)
    mesh.feed(Received(OTHER_SCHEDULER, RequestFailed(sent_as, "internal_error", "x")))
    mesh.feed(Received(GATEWAY, TokenDeltas((TokenDelta(sent_as, 3, pack_ids([5])),))))

    assert (mesh.text_at(), mesh.state.num_requests) == ("fox", 1)


@pytest.mark.parametrize(
    ("num_missing", "packed"), [(1, pack_ids([5])), (0, b"\0\0\0")], ids=["gap", "half an id"]
)
def test_the_rest_of_a_broken_answer_is_asked_for_again(num_missing: int, packed: bytes) -> None:
    mesh = Mesh(SCHEDULER)
    mesh.ask()
    sent_as = mesh.generated().request_id
    fox = ids_of("fox")
    mesh.emit(sent_as, 0, fox)

    delta = TokenDelta(sent_as, len(fox) + num_missing, packed)
    mesh.feed(Received(SCHEDULER, TokenDeltas((delta,))))

    assert mesh.to(SCHEDULER, CancelRequest) == [CancelRequest(sent_as, "superseded")]
    assert list(unpack_ids(mesh.generated().output_ids)) == fox
    mesh.emit(sent_as, len(fox), ids_of("late"))  # of the sending that was given up
    assert mesh.text_at() == "fox"


# ── gateways come and go ─────────────────────────────────────────────────────────────────────────


def test_a_resumed_request_goes_on_behind_the_text_that_the_client_has() -> None:
    mesh = Mesh(SCHEDULER)
    fox = ids_of("a fox jum")
    mesh.ask(resume=fox, text=TextOptions(stop=("jumps",)))
    assert list(unpack_ids(mesh.generated().output_ids)) == fox

    mesh.emit(mesh.generated().request_id, len(fox), ids_of("ped"), finish="length")

    assert mesh.text_at() == "jumped"  # "jum" had been held back by the other tokenizer too


def test_a_resumed_request_that_is_complete_ends_at_once() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.ask(resume=[*ids_of("fox"), END])
    assert mesh.deltas_at()[-1].finish_reason == "stop"
    assert not mesh.to(SCHEDULER, GenerateRequest)
    assert mesh.state.num_requests == 0


def test_a_cancelled_request_is_cancelled_downstream() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.ask()
    mesh.feed(Received(GATEWAY, CancelRequest("r", "deadline")))
    sent_as = mesh.generated().request_id
    assert mesh.to(SCHEDULER, CancelRequest) == [CancelRequest(sent_as, "deadline")]
    assert mesh.state.num_requests == 0


def test_a_request_cancelled_while_it_is_encoded_or_waits_never_leaves() -> None:
    mesh = Mesh()
    mesh.ask("encoding", encode=False)
    mesh.feed(Received(GATEWAY, CancelRequest("encoding", "client_disconnected")))
    mesh.encode_all()
    mesh.ask("waiting")
    mesh.feed(Received(GATEWAY, CancelRequest("waiting", "client_disconnected")))
    mesh.scheduler_up(SCHEDULER)
    assert not mesh.to(SCHEDULER, GenerateRequest)
    assert mesh.state.num_requests == 0


def test_a_request_that_comes_again_replaces_the_one_before() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.ask()
    first = mesh.generated().request_id
    mesh.ask(resume=ids_of("fox"))
    assert mesh.to(SCHEDULER, CancelRequest) == [CancelRequest(first, "superseded")]
    assert list(unpack_ids(mesh.generated().output_ids)) == ids_of("fox")
    assert mesh.state.num_requests == 1


def test_a_lost_gateways_requests_are_cancelled() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.ask()
    mesh.ask(gateway=OTHER_GATEWAY)
    mesh.feed(PeerDown(GATEWAY, "silent"))
    assert len(mesh.to(SCHEDULER, CancelRequest)) == 1
    assert mesh.state.num_requests == 1


# ── audits ───────────────────────────────────────────────────────────────────────────────────────


def test_what_a_gateway_does_not_list_is_freed_and_what_we_lack_is_reported() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.ask("kept")
    mesh.ask("orphan")
    orphan = mesh.generated().request_id

    mesh.feed(Received(GATEWAY, LiveRequests(("kept", "lost"))))

    assert mesh.to(SCHEDULER, CancelRequest) == [CancelRequest(orphan, "client_disconnected")]
    assert mesh.to(GATEWAY, UnknownRequests) == [UnknownRequests(("lost",))]
    mesh.feed(Received(GATEWAY, LiveRequests(("kept",))))
    assert len(mesh.to(GATEWAY, UnknownRequests)) == 1


def test_every_scheduler_is_told_once_per_period_what_is_still_wanted() -> None:
    mesh = Mesh(SCHEDULER, OTHER_SCHEDULER)
    mesh.feed(Tick())
    mesh.ask()
    mesh.sent = [(i, m) for i, m in mesh.sent if not isinstance(m, LiveRequests)]
    for mesh.now in (9.9, 10.0, 10.1):
        mesh.feed(Tick())
    [wanted] = mesh.to(SCHEDULER, LiveRequests)
    assert wanted == LiveRequests((mesh.generated().request_id,))
    assert mesh.to(OTHER_SCHEDULER, LiveRequests) == [LiveRequests(())]


# ── full links ───────────────────────────────────────────────────────────────────────────────────


def test_a_request_that_no_link_takes_waits_and_keeps_its_turn() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.full = {"s0"}
    for name in "abc":
        mesh.ask(name)
    assert (mesh.state.num_waiting, mesh.state.has_unsent) == (3, True)

    mesh.full = set()
    mesh.feed(Tick())

    names = [m.request_id for m in mesh.to(SCHEDULER, GenerateRequest)]
    assert [name.partition("~")[0] for name in names] == ["a", "b", "c"]
    assert mesh.state.num_waiting == 0


def test_a_request_that_one_link_refuses_goes_to_another() -> None:
    mesh = Mesh(SCHEDULER, OTHER_SCHEDULER)
    mesh.full = {"s0"}
    mesh.ask()
    assert mesh.generated(OTHER_SCHEDULER)
    assert mesh.state.num_waiting == 0


def test_waiting_for_a_full_link_ends_after_the_same_limit() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.full = {"s0"}
    mesh.ask()
    for _ in range(3):
        mesh.now += requests.WAIT_LIMIT_S / 2
        mesh.feed(Tick())
    assert mesh.failure().code == "unavailable"


def test_text_for_a_full_gateway_is_kept_in_order_and_nobody_else_waits() -> None:
    mesh = Mesh(SCHEDULER)
    mesh.ask("slow")
    mesh.ask("quick", gateway=OTHER_GATEWAY)
    slow, quick = (m.request_id for m in mesh.to(SCHEDULER, GenerateRequest))
    mesh.full = {"g0"}
    text = ids_of("one two three four")
    for num_before, token_id in enumerate(text):
        mesh.emit(slow, num_before, [token_id])
    mesh.emit(quick, 0, ids_of("fox"))
    assert (mesh.text_at(), mesh.text_at(OTHER_GATEWAY)) == ("", "fox")
    mesh.feed(Tick())  # refused once more
    mesh.emit(slow, len(text), ids_of(" five"))

    mesh.full = set()
    mesh.feed(Tick())

    assert mesh.text_at() == "one two three four five"
    assert len(mesh.to(GATEWAY, TextDeltas)) == 1  # joined while they were kept
    assert not mesh.state.has_unsent


def test_a_gateway_that_never_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_NUM_UNSENT", 2)
    mesh = Mesh(SCHEDULER)
    mesh.ask()
    mesh.full = {"g0"}
    for name in ("x", "y", "z"):
        mesh.feed(Received(GATEWAY, LiveRequests(("r", name))))
    mesh.feed(Tick())
    assert len(mesh.to(SCHEDULER, CancelRequest)) == 1
    assert (mesh.state.num_requests, mesh.state.has_unsent) == (0, False)
