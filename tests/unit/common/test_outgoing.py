from common.outgoing import Outgoing


def test_messages_leave_in_the_order_they_came() -> None:
    waiting = Outgoing(max_messages=3, max_bytes=100)
    for data in (b"a", b"bb", b"ccc"):
        assert waiting.push(data)

    left = []
    while waiting:
        left.append(waiting.first())
        waiting.pop()

    assert left == [b"a", b"bb", b"ccc"]
    assert waiting.num_bytes == 0


def test_one_more_than_the_limit_is_refused_and_changes_nothing() -> None:
    waiting = Outgoing(max_messages=2, max_bytes=100)
    assert waiting.push(b"a")
    assert waiting.push(b"b")

    assert not waiting.push(b"c")

    assert (len(waiting), waiting.num_bytes) == (2, 2)


def test_bytes_are_limited_too() -> None:
    waiting = Outgoing(max_messages=100, max_bytes=10)
    assert waiting.push(b"12345")

    assert not waiting.push(b"678901")  # 11 in all
    assert waiting.push(b"67890")


def test_a_message_larger_than_the_limit_passes_alone() -> None:
    waiting = Outgoing(max_messages=100, max_bytes=10)

    assert waiting.push(b"x" * 11)
    assert not waiting.push(b"")


def test_room_comes_back_when_something_was_sent() -> None:
    waiting = Outgoing(max_messages=1, max_bytes=10)
    assert waiting.push(b"a")
    waiting.pop()

    assert waiting.push(b"b")
