from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from common.errors import FailureCode
from common.link import PeerChanged, PeerDown, PeerUp, Received
from common.messages import (
    CancelRequest,
    FinishReason,
    Heartbeat,
    LiveRequests,
    RequestFailed,
    SamplingParams,
    TextDelta,
    TextDeltas,
    TextOptions,
    TextPrompt,
    TokenizeRequest,
    UnknownRequests,
)
from common.token_ids import pack_ids, unpack_ids
from services.gateway.events import (
    Abandon,
    Action,
    Deliver,
    Event,
    Fail,
    Send,
    SendRefused,
    Submit,
    Tick,
)
from services.gateway.streams import MAX_RESENDS, MAX_WAIT_S, GatewayState
from tests.unit.gateway.playground import ready, tokenizer

AUDIT_S = 10.0


def a_request(request_id: str = "r1", echo: bool = False) -> TokenizeRequest:
    return TokenizeRequest(
        request_id, TextPrompt("hi"), SamplingParams(), TextOptions(stop=("x",), echo=echo)
    )


def delta(
    request_id: str, before: int, ids: Sequence[int] = (7,), finish: FinishReason | None = None
) -> TextDelta:
    text = "".join(f"<{i}>" for i in ids)
    return TextDelta(request_id, before, text, pack_ids(ids), finish_reason=finish)


def a_state(*numbers: int) -> GatewayState:
    """With ready tokenizers of these numbers, and its first audit behind it."""
    state = GatewayState(AUDIT_S)
    for number in numbers:
        state.handle(PeerUp(tokenizer(number)), 0.0)
        state.handle(PeerChanged(tokenizer(number), ready()), 0.0)
    state.handle(Tick(), 0.0)
    return state


def from_tokenizer(number: int, *deltas: TextDelta) -> Received:
    return Received(tokenizer(number), TextDeltas(deltas))


def submit(state: GatewayState, *request_ids: str, now: float = 0.0) -> list[Action]:
    return [
        action
        for request_id in request_ids
        for action in state.handle(Submit(a_request(request_id), "tiny"), now)
    ]


def owners(actions: list[Action]) -> list[str]:
    return [action.instance_id for action in actions if isinstance(action, Send)]


def codes(actions: list[Action]) -> list[FailureCode]:
    return [action.error.code for action in actions if isinstance(action, Fail)]


# ── placement ────────────────────────────────────────────────────────────────────────────────────


def test_new_requests_go_to_the_tokenizer_with_fewest_of_ours() -> None:
    state = a_state(0, 1, 2)

    assert owners(submit(state, *"abcdef")) == ["instance-0", "instance-1", "instance-2"] * 2


def test_between_equals_the_one_with_fewest_requests_of_others_wins() -> None:
    state = a_state(0, 1)
    state.handle(PeerChanged(tokenizer(0), ready(num_requests=5)), 0.0)

    assert owners(submit(state, "a")) == ["instance-1"]


def test_a_tokenizer_that_drains_is_not_ready_or_serves_another_model_gets_nothing() -> None:
    state = a_state(0, 1, 2, 3)
    state.handle(PeerChanged(tokenizer(0), ready(draining=True)), 0.0)
    state.handle(PeerChanged(tokenizer(1), Heartbeat(ready=False, draining=False)), 0.0)
    state.handle(PeerChanged(tokenizer(2), ready(model="other")), 0.0)

    assert owners(submit(state, "a", "b")) == ["instance-3"] * 2


def test_a_request_without_a_tokenizer_waits_for_one() -> None:
    state = a_state(0)
    state.handle(PeerDown(tokenizer(0), "killed"), 1.0)
    assert submit(state, "a", now=1.0) == []

    state.handle(PeerUp(tokenizer(1)), 30.0)
    actions = state.handle(PeerChanged(tokenizer(1), ready()), 30.0)

    assert actions == [Send("instance-1", a_request("a"))]


def test_a_request_that_waits_too_long_fails() -> None:
    state = a_state()
    submit(state, "a")

    assert state.handle(Tick(), MAX_WAIT_S) == []
    assert codes(state.handle(Tick(), MAX_WAIT_S + 1)) == [FailureCode.UNAVAILABLE]
    assert state.num_requests == 0


def test_a_model_stays_served_for_as_long_as_requests_wait_for_it() -> None:
    state = a_state(0)
    state.handle(PeerDown(tokenizer(0), "killed"), 0.0)

    state.handle(Tick(), MAX_WAIT_S)
    assert "tiny" in state.models
    state.handle(Tick(), MAX_WAIT_S + 1)
    assert "tiny" not in state.models


def test_a_full_link_refuses_a_new_request() -> None:
    state = a_state(0)
    submit(state, "a")

    actions = state.handle(SendRefused("instance-0", a_request("a")), 0.0)

    assert codes(actions) == [FailureCode.OVERLOADED]
    assert state.num_requests == 0


def test_a_full_link_makes_an_interrupted_stream_wait() -> None:
    state = a_state(0, 1)
    submit(state, "a")
    state.handle(from_tokenizer(0, delta("a", 0)), 0.0)
    (resent,) = state.handle(PeerDown(tokenizer(0), "killed"), 1.0)
    assert isinstance(resent, Send)

    assert state.handle(SendRefused("instance-1", resent.message), 1.0) == []
    assert state.handle(Tick(), 1.1) == [resent]


def test_a_full_link_makes_a_stream_wait_that_its_tokenizer_gave_back() -> None:
    state = a_state(0)
    submit(state, "a")
    state.handle(from_tokenizer(0, delta("a", 0)), 0.0)
    state.handle(Received(tokenizer(0), RequestFailed("a", "unavailable", "no scheduler")), 1.0)
    (resent,) = state.handle(Tick(), 1.1)
    assert isinstance(resent, Send)

    assert state.handle(SendRefused("instance-0", resent.message), 1.1) == []
    assert state.handle(Tick(), 1.2) == [resent]


# ── deltas ───────────────────────────────────────────────────────────────────────────────────────


def test_deltas_of_the_owner_are_delivered_in_order() -> None:
    state = a_state(0)
    submit(state, "a", "b")
    deltas = [delta("a", 0), delta("b", 0, (1, 2)), delta("a", 1), delta("b", 2, (3,))]

    assert state.handle(from_tokenizer(0, *deltas), 0.0) == [Deliver(each) for each in deltas]


def test_a_repeated_delta_is_dropped() -> None:
    state = a_state(0)
    submit(state, "a")
    state.handle(from_tokenizer(0, delta("a", 0, (1, 2))), 0.0)

    assert state.handle(from_tokenizer(0, delta("a", 0, (1, 2)), delta("a", 1, (2,))), 0.0) == []


def test_deltas_of_anybody_but_the_owner_are_dropped() -> None:
    state = a_state(0, 1)
    submit(state, "a")

    assert state.handle(from_tokenizer(1, delta("a", 0), delta("nobody's", 0)), 0.0) == []


def test_a_finish_reason_ends_the_request() -> None:
    state = a_state(0)
    submit(state, "a")
    last = delta("a", 0, (), finish="length")

    assert state.handle(from_tokenizer(0, last, delta("a", 0)), 0.0) == [Deliver(last)]
    assert state.num_requests == 0


def test_an_early_end_is_a_failure() -> None:
    state = a_state(0)
    submit(state, "a")

    actions = state.handle(from_tokenizer(0, delta("a", 0, (), finish="error")), 0.0)

    assert codes(actions) == [FailureCode.INTERNAL]


def test_a_gap_is_healed_by_the_next_audit() -> None:
    state = a_state(0)
    submit(state, "a")
    state.handle(from_tokenizer(0, delta("a", 0)), 0.0)
    assert state.handle(from_tokenizer(0, delta("a", 2)), 0.0) == []

    actions = state.handle(Tick(), AUDIT_S)

    cancel, resend, audit = (a.message for a in actions if isinstance(a, Send))
    assert isinstance(cancel, CancelRequest)
    assert isinstance(resend, TokenizeRequest)
    assert list(unpack_ids(resend.resume_output_ids)) == [7]
    assert audit == LiveRequests(("a",))


# ── failure, cancel, deadline ────────────────────────────────────────────────────────────────────


def test_a_refusal_reaches_the_client_as_it_is() -> None:
    state = a_state(0)
    submit(state, "a")
    message = RequestFailed("a", "context_length_exceeded", "too long", "prompt")

    (fail,) = state.handle(Received(tokenizer(0), message), 0.0)

    assert isinstance(fail, Fail)
    assert fail.error.code is FailureCode.CONTEXT_LENGTH_EXCEEDED
    assert (fail.error.message, fail.error.param) == ("too long", "prompt")


def test_a_stream_in_mid_answer_waits_where_a_new_request_is_refused() -> None:
    state = a_state(0)
    submit(state, "new", "old")
    state.handle(from_tokenizer(0, delta("old", 0)), 0.0)

    refusals = [RequestFailed(name, "overloaded", "full") for name in ("new", "old")]
    actions = [a for r in refusals for a in state.handle(Received(tokenizer(0), r), 1.0)]

    assert codes(actions) == [FailureCode.OVERLOADED]
    (again,) = state.handle(Tick(), 1.1)
    assert isinstance(again, Send)
    assert isinstance(again.message, TokenizeRequest)
    assert again.message.request_id == "old"


def test_an_unknown_failure_code_is_ours_to_blame() -> None:
    state = a_state(0)
    submit(state, "a")

    actions = state.handle(Received(tokenizer(0), RequestFailed("a", "?", "m")), 0.0)

    assert codes(actions) == [FailureCode.INTERNAL]


def test_a_failure_from_a_former_owner_is_dropped() -> None:
    state = a_state(0, 1)
    submit(state, "a")

    assert state.handle(Received(tokenizer(1), RequestFailed("a", "timeout", "m")), 0.0) == []


def test_an_abandoned_request_is_cancelled_once_at_its_owner() -> None:
    state = a_state(0)
    submit(state, "a")

    actions = state.handle(Abandon("a", "client_disconnected"), 0.0)

    assert actions == [Send("instance-0", CancelRequest("a", "client_disconnected"))]
    assert state.handle(Abandon("a", "client_disconnected"), 0.0) == []


def test_a_waiting_request_is_abandoned_without_a_message() -> None:
    state = a_state()
    submit(state, "a")

    assert state.handle(Abandon("a", "client_disconnected"), 0.0) == []
    assert state.num_requests == 0


def test_a_deadline_fails_the_request_and_cancels_its_work() -> None:
    state = a_state(0)
    state.handle(Submit(a_request("a"), "tiny", timeout_s=5.0), 1.0)

    assert state.handle(Tick(), 5.9) == []
    cancel, fail = state.handle(Tick(), 6.0)

    assert cancel == Send("instance-0", CancelRequest("a", "deadline"))
    assert codes([fail]) == [FailureCode.TIMEOUT]


# ── tokenizers die ───────────────────────────────────────────────────────────────────────────────


def test_requests_of_a_lost_tokenizer_are_resumed_behind_what_was_delivered() -> None:
    state = a_state(0, 1)
    submit(state, "a")
    state.handle(from_tokenizer(0, delta("a", 0, (5, 6)), delta("a", 2, (7,))), 0.0)

    (send,) = state.handle(PeerDown(tokenizer(0), "killed"), 1.0)

    assert isinstance(send, Send)
    assert send.instance_id == "instance-1"
    assert isinstance(send.message, TokenizeRequest)
    assert list(unpack_ids(send.message.resume_output_ids)) == [5, 6, 7]
    late = from_tokenizer(0, delta("a", 3))
    assert state.handle(late, 1.0) == []
    assert state.handle(from_tokenizer(1, delta("a", 3)), 1.0) == [Deliver(delta("a", 3))]


def test_an_echoed_prompt_is_not_asked_for_again() -> None:
    state = a_state(0, 1)
    state.handle(Submit(a_request("a", echo=True), "tiny"), 0.0)
    state.handle(from_tokenizer(0, delta("a", 0, ())), 0.0)  # the echo, without a token

    (send,) = state.handle(PeerDown(tokenizer(0), "killed"), 1.0)

    assert isinstance(send, Send)
    assert isinstance(send.message, TokenizeRequest)
    assert not send.message.text.echo
    assert send.message.text.stop == ("x",)


def test_the_oldest_requests_are_resumed_first() -> None:
    state = a_state(0)
    submit(state, *"zyxw")
    state.handle(PeerDown(tokenizer(0), "killed"), 1.0)

    state.handle(PeerUp(tokenizer(1)), 2.0)
    actions = state.handle(PeerChanged(tokenizer(1), ready()), 2.0)

    assert [a.message for a in actions if isinstance(a, Send)] == [a_request(i) for i in "zyxw"]


def test_a_request_that_outlives_too_many_tokenizers_is_given_up() -> None:
    state = a_state(*range(MAX_RESENDS + 1))
    (send,) = submit(state, "a")
    for _ in range(MAX_RESENDS):
        assert isinstance(send, Send)
        number = int(send.instance_id[-1])
        (send,) = state.handle(PeerDown(tokenizer(number), "killed"), 1.0)
    assert isinstance(send, Send)

    last = state.handle(PeerDown(tokenizer(int(send.instance_id[-1])), "killed"), 1.0)

    assert codes(last) == [FailureCode.INTERNAL]


def test_a_stream_that_makes_progress_outlives_any_number_of_tokenizers() -> None:
    state = a_state(*range(MAX_RESENDS + 2))
    (send,) = submit(state, "a")
    for num_tokens in range(MAX_RESENDS + 1):
        assert isinstance(send, Send)
        number = int(send.instance_id[-1])
        state.handle(from_tokenizer(number, delta("a", num_tokens)), 1.0)
        (send,) = state.handle(PeerDown(tokenizer(number), "replaced"), 1.0)

    assert isinstance(send, Send)


def test_a_request_that_its_tokenizer_does_not_know_is_sent_again() -> None:
    state = a_state(0)
    submit(state, "a")
    state.handle(from_tokenizer(0, delta("a", 0)), 0.0)

    actions = state.handle(Received(tokenizer(0), UnknownRequests(("a", "b"))), 0.0)

    (message,) = (a.message for a in actions if isinstance(a, Send))
    assert isinstance(message, TokenizeRequest)
    assert list(unpack_ids(message.resume_output_ids)) == [7]


def test_every_tokenizer_is_told_what_we_want_of_it_once_per_period() -> None:
    state = a_state(0, 1)
    submit(state, "a", "b", "c")

    assert state.handle(Tick(), AUDIT_S - 0.1) == []
    assert state.handle(Tick(), AUDIT_S) == [
        Send("instance-0", LiveRequests(("a", "c"))),
        Send("instance-1", LiveRequests(("b",))),
    ]


# ── anything in any order ────────────────────────────────────────────────────────────────────────


class AnyOrder(RuleBasedStateMachine):
    """Tokenizers that come, go and lie; each request must still end once, with joined-up text."""

    def __init__(self) -> None:
        super().__init__()
        self.state = GatewayState(AUDIT_S)
        self.now = 0.0
        self.up: set[int] = set()
        self.live: dict[str, int] = {}  # request id → tokens delivered
        self.serial = 0

    def handle(self, event: Event) -> None:
        for action in self.state.handle(event, self.now):
            match action:
                case Deliver(delta):
                    assert delta.num_output_tokens == self.live[delta.request_id]
                    self.live[delta.request_id] += len(delta.token_ids) // 4
                    if delta.finish_reason is not None:
                        del self.live[delta.request_id]
                case Fail(request_id):
                    del self.live[request_id]
                case Send(instance_id):
                    assert int(instance_id[-1]) in self.up

    @rule(number=st.integers(0, 3), is_ready=st.booleans())
    def tokenizer_says(self, number: int, is_ready: bool) -> None:
        if number not in self.up:
            self.up.add(number)
            self.handle(PeerUp(tokenizer(number)))
        self.handle(PeerChanged(tokenizer(number), ready(draining=not is_ready)))

    @rule(number=st.integers(0, 3))
    def tokenizer_dies(self, number: int) -> None:
        if number in self.up:
            self.up.remove(number)
            self.handle(PeerDown(tokenizer(number), "killed"))

    @rule(timeout_s=st.none() | st.floats(0, 100))
    def client_asks(self, timeout_s: float | None) -> None:
        self.serial += 1
        request = a_request(f"r{self.serial}")
        self.live[request.request_id] = 0
        self.handle(Submit(request, "tiny", timeout_s))

    @rule(
        number=st.integers(0, 3),
        whose=st.integers(1, 20),
        before=st.integers(0, 5),
        count=st.integers(0, 2),
        finish=st.sampled_from([None, None, None, "stop", "length", "error", "cancelled"]),
    )
    def tokenizer_delivers(
        self, number: int, whose: int, before: int, count: int, finish: FinishReason | None
    ) -> None:
        if number in self.up:
            self.handle(from_tokenizer(number, delta(f"r{whose}", before, [1] * count, finish)))

    @rule(number=st.integers(0, 3), whose=st.integers(1, 20), fails=st.booleans())
    def tokenizer_denies(self, number: int, whose: int, fails: bool) -> None:
        if number in self.up:
            name = f"r{whose}"
            message = RequestFailed(name, "timeout", "m") if fails else UnknownRequests((name,))
            self.handle(Received(tokenizer(number), message))

    @rule(whose=st.integers(1, 20))
    def client_leaves(self, whose: int) -> None:
        self.live.pop(f"r{whose}", None)
        self.handle(Abandon(f"r{whose}", "client_disconnected"))

    @rule(seconds=st.floats(0, 70))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.handle(Tick())

    @invariant()
    def the_state_knows_exactly_the_live_requests(self) -> None:
        assert self.state.num_requests == len(self.live)


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase


@given(st.lists(st.integers(1, 4), max_size=12))
def test_load_stays_even(sizes: list[int]) -> None:
    state = a_state(0, 1, 2)
    sent: list[str] = []
    for index, size in enumerate(sizes):
        sent += owners(submit(state, *(f"{index}-{i}" for i in range(size))))

    counts = [sent.count(f"instance-{number}") for number in range(3)]
    assert max(counts) - min(counts) <= 1
