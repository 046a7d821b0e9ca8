import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.link import Peer, PeerChanged, PeerDown, PeerUp, Received
from common.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    CancelRequest,
    Goodbye,
    Heartbeat,
    Hello,
    Refused,
    StepPlan,
    UnknownRequests,
    WorkerJoin,
)
from common.peer_table import (
    REFUSED_REDIAL_S,
    SAY_HELLO_FIRST,
    Action,
    Emit,
    Fault,
    Hangup,
    PeerTable,
    Reply,
)

ME = Peer("scheduler", "scheduler-0", "me")
TOKENIZER = Peer("tokenizer", "tokenizer-0", "t0")
WORKER = Peer("worker", "worker-0", "w0")
READY = Heartbeat(ready=True, draining=False)
CANCEL = CancelRequest("r-1", "deadline")


def a_hello(peer: Peer, version: int = PROTOCOL_VERSION) -> Hello:
    return Hello(version, peer.kind, peer.name, peer.instance_id)


def an_inbox(me: Peer = ME) -> PeerTable[str]:
    return PeerTable(me, initiator=False, silence_limit_s=5.0, tick_s=1.0, now=0.0)


def an_outbox(me: Peer = TOKENIZER) -> PeerTable[str]:
    return PeerTable(me, initiator=True, silence_limit_s=5.0, tick_s=1.0, now=0.0)


def up(table: PeerTable[str], key: str, peer: Peer, now: float = 0.0) -> None:
    table.received(key, a_hello(peer), now)


def events(actions: list[Action[str]]) -> list[object]:
    return [action.event for action in actions if isinstance(action, Emit)]


def test_a_hello_is_answered_before_the_peer_is_up() -> None:
    table = an_inbox()

    actions = table.received("k", a_hello(TOKENIZER), 0.0)

    assert actions == [Reply("k", a_hello(ME)), Emit(PeerUp(TOKENIZER))]
    assert table.peers == {"t0": TOKENIZER}
    assert table.key_of("t0") == "k"
    assert table.heartbeat_of("t0") is None


def test_the_initiator_does_not_answer_the_answer() -> None:
    table = an_outbox()
    table.opened("k", 0.0)

    assert table.received("k", a_hello(ME), 0.1) == [Emit(PeerUp(ME))]


def test_a_heartbeat_is_news_only_when_it_differs() -> None:
    table = an_inbox()
    up(table, "k", TOKENIZER)

    assert table.received("k", READY, 1.0) == [Emit(PeerChanged(TOKENIZER, READY))]
    assert table.received("k", READY, 2.0) == []
    assert table.heartbeat_of("t0") == READY


def test_a_message_for_the_service_is_passed_on_with_its_sender() -> None:
    table = an_inbox()
    up(table, "k", TOKENIZER)

    assert table.received("k", CANCEL, 1.0) == [Emit(Received(TOKENIZER, CANCEL))]


def test_a_message_before_hello_is_dropped_and_told_so() -> None:
    actions = an_inbox().received("k", CANCEL, 0.0)

    assert actions == [
        Fault("k", None, "no_hello", "CancelRequest before Hello"),
        Reply("k", Refused(SAY_HELLO_FIRST)),
    ]


def test_who_is_told_to_say_hello_dials_again_soon() -> None:
    table = an_outbox()
    table.opened("k", 0.0)
    up(table, "k", ME)

    actions = table.received("k", Refused(SAY_HELLO_FIRST), 1.0)

    assert events(actions) == [PeerDown(ME, "the peer had given us up")]
    assert actions[-1] == Hangup("k", redial_s=0.2)
    assert not table.peers


@pytest.mark.parametrize("version", [0, 2, 99])
def test_another_version_is_refused_with_both_numbers(version: int) -> None:
    table = an_inbox()

    fault, reply = table.received("k", a_hello(TOKENIZER, version), 0.0)

    assert isinstance(fault, Fault)
    assert fault.reason == "version"
    assert isinstance(reply, Reply)
    assert isinstance(reply.message, Refused)
    assert f"protocol version {version} and {PROTOCOL_VERSION}" in reply.message.reason
    assert not table.peers


def test_who_is_refused_waits_before_dialling_again() -> None:
    table = an_outbox()
    table.opened("k", 0.0)

    fault, hangup = table.received("k", Refused("protocol version 2 and 1 do not mix"), 0.1)

    assert isinstance(fault, Fault)
    assert fault.detail == "the peer refuses us: protocol version 2 and 1 do not mix"
    assert hangup == Hangup("k", REFUSED_REDIAL_S)


@pytest.mark.parametrize("kind", ["gateway", "scheduler", "pirate", ""])
def test_a_kind_that_does_not_belong_on_the_link_is_refused(kind: str) -> None:
    table = an_inbox()

    fault, reply = table.received("k", Hello(PROTOCOL_VERSION, kind, "x", "x0"), 0.0)

    assert isinstance(fault, Fault)
    assert fault.reason == "kind"
    assert "scheduler scheduler-0 expects a tokenizer or worker" in fault.detail
    assert reply == Reply("k", Refused(fault.detail))
    assert not table.peers


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "line\nbreak", "../x"])
def test_names_that_could_confuse_logs_and_files_are_refused(name: str) -> None:
    for hello in (
        Hello(PROTOCOL_VERSION, "worker", name, "w0"),
        Hello(PROTOCOL_VERSION, "worker", "w", name),
    ):
        fault, *_ = an_inbox().received("k", hello, 0.0)
        assert isinstance(fault, Fault)
        assert fault.reason == "name"


@pytest.mark.parametrize(
    ("sender", "message"),
    [
        (TOKENIZER, WorkerJoin("m", "cpu", "reference", "float32", 9, 16, 99, 9, 9)),
        (WORKER, CANCEL),
        (WORKER, StepPlan(1, ())),
        (TOKENIZER, UnknownRequests(("r-1",))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_message_that_its_sender_may_not_send_is_dropped(
    sender: Peer, message: WorkerJoin
) -> None:
    table = an_inbox()
    up(table, "k", sender)

    detail = f"a {sender.kind} may not send {type(message).__name__}"
    assert table.received("k", message, 1.0) == [Fault("k", sender, "not_allowed", detail)]
    assert table.peers  # it is the message that is dropped, not the peer


def test_silence_beyond_the_limit_is_loss() -> None:
    table = an_inbox()
    up(table, "k", WORKER)

    for second in range(1, 6):
        assert table.tick(float(second)) == []

    actions = table.tick(6.0)
    assert actions == [Emit(PeerDown(WORKER, "silent for 6.0 s")), Hangup("k")]
    assert table.tick(7.0) == []


def test_anything_heard_is_a_sign_of_life() -> None:
    table = an_inbox()
    up(table, "k", WORKER)

    for second in range(1, 20):
        if second % 4 == 0:
            table.heard("k", float(second))  # bytes that mean nothing
        assert table.tick(float(second)) == []


def test_the_time_that_we_were_stopped_is_nobodys_silence() -> None:
    table = an_inbox()
    up(table, "k", WORKER)
    table.tick(1.0)

    assert table.tick(61.0) == []  # stopped for a minute; its messages are not read yet

    assert [table.tick(61.0 + second) for second in range(1, 4)] == [[], [], []]
    assert events(table.tick(65.0)) == [PeerDown(WORKER, "silent for 6.0 s")]


def test_who_was_not_listened_to_has_a_full_limit_afterwards() -> None:
    table = an_inbox()
    up(table, "k", WORKER)
    for second in range(1, 5):
        table.tick(float(second))

    table.excuse(4.5)

    for second in range(5, 10):
        assert table.tick(float(second)) == []
    assert events(table.tick(10.0)) == [PeerDown(WORKER, "silent for 5.5 s")]


def test_goodbye_is_loss_at_once_and_says_why() -> None:
    table = an_inbox()
    up(table, "k", WORKER)

    actions = table.received("k", Goodbye("shut down"), 1.0)

    assert events(actions) == [PeerDown(WORKER, "said goodbye: shut down")]
    assert not table.peers


@pytest.mark.parametrize("farewell", [Goodbye("x" * 10_000), Refused("x" * 10_000)])
def test_a_peer_that_leaves_with_many_words_does_not_fill_the_log(
    farewell: Goodbye | Refused,
) -> None:
    table = an_outbox()
    table.opened("k", 0.0)
    up(table, "k", ME)

    (down,) = events(table.received("k", farewell, 1.0))

    assert isinstance(down, PeerDown)
    assert len(down.reason) < 600


def test_a_broken_connection_takes_its_peer_down_once() -> None:
    table = an_inbox()
    up(table, "k", WORKER)

    assert events(table.lost("k", "connection lost")) == [PeerDown(WORKER, "connection lost")]
    assert table.lost("k", "connection lost") == []


def test_a_connection_that_breaks_before_hello_is_dialled_again_without_an_event() -> None:
    table = an_outbox()
    table.opened("k", 0.0)

    assert table.lost("k", "connection lost") == [Hangup("k")]


def test_a_restarted_process_of_the_same_name_replaces_the_old_one() -> None:
    table = an_inbox()
    up(table, "old", WORKER)
    restarted = Peer("worker", "worker-0", "w1")

    actions = table.received("new", a_hello(restarted), 1.0)

    reason = "replaced by another process named worker-0"
    assert events(actions) == [PeerDown(WORKER, reason), PeerUp(restarted)]
    assert Reply("old", Refused(reason)) in actions
    assert table.peers == {"w1": restarted}


def test_the_same_name_of_another_kind_is_somebody_else() -> None:
    table = an_inbox()
    up(table, "a", Peer("worker", "host-1", "w0"))
    up(table, "b", Peer("tokenizer", "host-1", "t0"))

    assert set(table.peers) == {"w0", "t0"}


def test_another_process_behind_the_same_connection_replaces_the_old_one() -> None:
    table = an_outbox()
    table.opened("k", 0.0)
    up(table, "k", ME)
    other = Peer("scheduler", "scheduler-9", "s9")

    assert events(table.received("k", a_hello(other), 1.0)) == [
        PeerDown(ME, "said Hello again"),
        PeerUp(other),
    ]


def test_the_same_instance_on_a_second_connection_moves_there() -> None:
    table = an_inbox()
    up(table, "old", WORKER)

    actions = table.received("new", a_hello(WORKER), 1.0)

    assert events(actions) == [PeerDown(WORKER, "connected again"), PeerUp(WORKER)]
    assert table.key_of("w0") == "new"
    fault, _ = table.received("old", READY, 1.1)
    assert isinstance(fault, Fault)


def test_an_instance_found_under_two_addresses_keeps_one_connection() -> None:
    table = an_outbox()
    for key in ("v4", "v6"):
        table.opened(key, 0.0)
    up(table, "v4", ME)

    actions = table.received("v6", a_hello(ME), 0.1)

    assert Hangup("v4", twin="v6") in actions
    assert table.keys_up() == ["v6"]


def test_a_peer_that_comes_back_has_no_heartbeat_from_before() -> None:
    table = an_inbox()
    up(table, "k", WORKER)
    table.received("k", READY, 0.5)
    table.lost("k", "connection lost")

    up(table, "k2", WORKER)

    assert table.heartbeat_of("w0") is None
    assert table.received("k2", READY, 1.0) == [Emit(PeerChanged(WORKER, READY))]


PEERS = [
    Peer("worker", "worker-0", "w0"),
    Peer("worker", "worker-0", "w1"),  # the same name, restarted
    Peer("worker", "worker-1", "w2"),
    Peer("tokenizer", "worker-0", "t0"),
    Peer("gateway", "gateway-0", "g0"),  # does not belong here
]
STEPS = st.one_of(
    st.tuples(
        st.sampled_from("abc"),
        st.one_of(
            st.sampled_from(
                [READY, CANCEL, Goodbye("bye"), Refused("no"), Refused(SAY_HELLO_FIRST)]
            ),
            st.builds(a_hello, st.sampled_from(PEERS), st.sampled_from([0, PROTOCOL_VERSION])),
        ),
    ),
    st.tuples(st.sampled_from("abc"), st.just("opened")),
    st.tuples(st.sampled_from("abc"), st.just("lost")),
    st.floats(0.0, 4.0),  # so much later comes a tick
)


@given(initiator=st.booleans(), steps=st.lists(STEPS, max_size=60))
def test_whatever_comes_each_peer_goes_up_and_down_in_turn(
    initiator: bool, steps: list[float | tuple[str, AnyMessage | str]]
) -> None:
    me = Peer("worker", "worker-9", "me") if initiator else ME
    table: PeerTable[str] = PeerTable(
        me, initiator=initiator, silence_limit_s=5.0, tick_s=1.0, now=0.0
    )
    now = 0.0
    is_up: dict[str, Peer] = {}
    for step in steps:
        if isinstance(step, float):
            now += step
            actions = table.tick(now)
        else:
            key, what = step
            if what == "opened":
                if table.peer_at(key) is None:  # a key is dialled once, and then lost
                    table.opened(key, now)
                actions = []
            elif isinstance(what, str):
                actions = table.lost(key, "connection lost")
            else:
                actions = table.received(key, what, now)
        for event in events(actions):
            assert isinstance(event, PeerUp | PeerDown | PeerChanged | Received)
            match event:
                case PeerUp(peer):
                    assert peer.instance_id not in is_up
                    is_up[peer.instance_id] = peer
                case PeerDown(peer):
                    assert is_up.pop(peer.instance_id) == peer
                case _:
                    assert is_up[event.peer.instance_id] == event.peer
        assert table.peers == is_up
        assert len({(peer.kind, peer.name) for peer in is_up.values()}) == len(is_up)
        for instance_id, peer in is_up.items():
            key_up = table.key_of(instance_id)
            assert key_up is not None
            assert table.peer_at(key_up) == peer
        assert len(set(table.keys_up())) == len(is_up)
