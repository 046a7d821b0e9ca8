import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.codec import MAX_MESSAGE_BYTES, decode, encode
from common.errors import ProtocolError
from common.messages import (
    AnyMessage,
    CancelRequest,
    Chunk,
    GenerateRequest,
    Goodbye,
    Heartbeat,
    Hello,
    Limits,
    NewSequence,
    RequestFailed,
    SamplingParams,
    StepPlan,
    TextOptions,
    TextPrompt,
    TokenDelta,
    TokenDeltas,
    TokenizeRequest,
)

PLAN = StepPlan(
    step_id=7,
    chunks=(Chunk(1, 30, 1, b"", True), Chunk(2, 0, 15, b"\x05\x00\x00\x00", False)),
    new_sequences=(
        NewSequence(
            2, b"\x01\x00\x00\x00" * 15, 15, 0, b"", SamplingParams(logit_bias=((3, -1.5),))
        ),
    ),
    dropped_sequence_ids=(4,),
)

EXAMPLES: list[AnyMessage] = [
    Hello(1, "worker", "worker-0", "a1"),
    Heartbeat(True, False, 3, Limits("m", 2048, 4096, 49152), 2),
    Goodbye("shut down"),
    CancelRequest("r-1", "client_disconnected"),
    RequestFailed("r-1", "overloaded", "too many", "prompt"),
    TokenizeRequest("r-1", TextPrompt("grüß dich 🙂"), SamplingParams(), TextOptions(stop=("a",))),
    TokenDeltas((TokenDelta("r-1", 0, b"\x01\x00\x00\x00", finish_reason="length"),)),
    GenerateRequest("r-1", b"\x01\x00\x00\x00", SamplingParams(seed=2**64 - 1)),
    PLAN,
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_what_is_encoded_is_decoded_to_the_same(message: AnyMessage) -> None:
    assert decode(encode(message)) == message


def test_on_the_wire_a_message_is_an_array_that_begins_with_its_tag() -> None:
    assert msgspec.msgpack.decode(encode(Goodbye("bye"))) == [4, "bye"]


@pytest.mark.parametrize("length", range(len(encode(PLAN))))
def test_every_truncation_is_malformed(length: int) -> None:
    with pytest.raises(ProtocolError) as raised:
        decode(encode(PLAN)[:length])
    assert raised.value.reason == "malformed"


@pytest.mark.parametrize(
    "wire",
    [
        [99, "x"],  # no such tag
        [],
        {"tag": 4},
        [4],  # a field is missing
        [4, "bye", "more"],
        [4, 5],
        [5, "r-1", "because"],  # not one of the reasons
    ],
    ids=str,
)
def test_values_that_are_no_message_are_invalid(wire: object) -> None:
    with pytest.raises(ProtocolError) as raised:
        decode(msgspec.msgpack.encode(wire))
    assert raised.value.reason == "invalid"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xc1", id="not MessagePack"),
        pytest.param(encode(PLAN) + b"\x00", id="bytes behind the end"),
        pytest.param(b"\x92\x04\xa2\xff\xfe", id="text that is not UTF-8"),
        pytest.param(b"\x96\x01\x01\xa1a\xa1a\xa1b" + b"\x91" * 100_000, id="nested without end"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="an array that claims four billion items"),
    ],
)
def test_bytes_that_are_no_message_are_malformed(data: bytes) -> None:
    with pytest.raises(ProtocolError) as raised:
        decode(data)
    assert raised.value.reason in {"malformed", "invalid"}


def test_a_hello_of_a_later_version_with_more_fields_can_be_read_and_answered() -> None:
    data = msgspec.msgpack.encode([1, 2, "worker", "worker-0", "a1", {"new": [1, 2]}])
    assert decode(data) == Hello(2, "worker", "worker-0", "a1")


def test_an_oversized_message_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProtocolError, match="101 bytes exceeds 100") as raised:
        decode(b"\x00" * 101, max_bytes=100)
    assert raised.value.reason == "oversized"


def test_a_message_that_every_peer_would_refuse_is_not_encoded() -> None:
    with pytest.raises(ProtocolError, match=f"exceeds {MAX_MESSAGE_BYTES}"):
        encode(Goodbye("x" * MAX_MESSAGE_BYTES))


def reason_of(data: bytes) -> str | None:
    """Why the bytes are refused; None if they are a message."""
    try:
        decode(data)
    except ProtocolError as error:
        return error.reason
    return None


@given(st.binary(max_size=200))
def test_random_bytes_decode_or_are_refused_with_a_reason(data: bytes) -> None:
    assert reason_of(data) in {None, "malformed", "invalid"}


@given(data=st.data())
def test_a_message_with_one_byte_changed_decodes_or_is_refused(data: st.DataObject) -> None:
    wire = bytearray(encode(data.draw(st.sampled_from(EXAMPLES))))
    wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))

    assert reason_of(bytes(wire)) in {None, "malformed", "invalid"}
