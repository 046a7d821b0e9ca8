import asyncio

from common.link import LinkEvent, Peer, PeerUp
from common.unread import Unread
from tests.support.in_loop import in_loop


def an_event(number: int) -> LinkEvent:
    return PeerUp(Peer("worker", f"worker-{number}", f"w{number}"))


@in_loop()
async def test_events_are_read_in_the_order_they_came() -> None:
    unread = Unread(max_events=10, max_bytes=100)
    for number in range(3):
        unread.put(an_event(number), 1)

    assert [await unread.get() for _ in range(3)] == [an_event(number) for number in range(3)]


@in_loop()
async def test_a_reader_waits_for_the_next_event() -> None:
    unread = Unread(max_events=10, max_bytes=100)
    reader = asyncio.create_task(unread.get())
    await asyncio.sleep(0)
    assert not reader.done()

    unread.put(an_event(1), 1)

    assert await reader == an_event(1)


@in_loop()
async def test_it_is_full_at_the_limit_and_until_less_than_half_is_left() -> None:
    unread = Unread(max_events=4, max_bytes=100)
    for number in range(3):
        unread.put(an_event(number), 0)
    assert not unread.is_full

    unread.put(an_event(3), 0)
    after_each = [unread.is_full]
    for _ in range(4):
        await unread.get()
        after_each.append(unread.is_full)

    assert after_each == [True, True, True, False, False]


@in_loop()
async def test_bytes_fill_it_too() -> None:
    unread = Unread(max_events=100, max_bytes=10)
    was_full = []
    for num_bytes in (9, 1):
        unread.put(an_event(num_bytes), num_bytes)
        was_full.append(unread.is_full)
    await unread.get()

    assert [*was_full, unread.is_full] == [False, True, False]


@in_loop()
async def test_what_comes_while_it_is_full_is_kept() -> None:
    unread = Unread(max_events=1, max_bytes=100)
    unread.put(an_event(0), 0)
    unread.put(an_event(1), 0)

    assert [await unread.get(), await unread.get()] == [an_event(0), an_event(1)]
