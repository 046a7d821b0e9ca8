import asyncio

import pytest

from common.errors import FailureCode, RequestError
from common.token_ids import unpack_ids
from services.gateway.mailbox import ClientGone, Mailbox
from tests.unit.gateway.playground import a_delta

pytestmark = pytest.mark.anyio

BROKEN = RequestError(FailureCode.INTERNAL, "broken")


async def test_what_piles_up_leaves_as_one_piece_per_choice() -> None:
    mailbox = Mailbox(2)
    mailbox.put(0, a_delta("a", 0, "one ", [1], num_cached_tokens=3))
    mailbox.put(1, a_delta("b", 0, "uno", [4]))
    mailbox.put(0, a_delta("a", 1, "two", [2, 3], finish="stop", stop_reason="x"))

    first, second = await mailbox.take()

    assert (first.index, first.text, list(unpack_ids(first.token_ids))) == (0, "one two", [1, 2, 3])
    assert (first.finish_reason, first.stop_reason) == ("stop", "x")
    assert first.num_cached_tokens == 3
    assert (second.index, second.text, second.finish_reason) == (1, "uno", None)
    assert not mailbox.is_empty_for_good


async def test_taking_waits_for_something_new() -> None:
    mailbox = Mailbox(1)
    mailbox.put(0, a_delta("a", 0, "one"))
    await mailbox.take()
    taking = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    assert not taking.done()

    mailbox.put(0, a_delta("a", 1, "two", finish="length"))

    (piece,) = await taking
    assert piece.text == "two"
    assert mailbox.is_empty_for_good


async def test_the_whole_answer_comes_in_the_order_of_the_choices() -> None:
    mailbox = Mailbox(2)
    mailbox.put(1, a_delta("b", 0, "second", finish="stop"))
    taking = asyncio.create_task(mailbox.take_whole())
    await asyncio.sleep(0)
    assert not taking.done()

    mailbox.put(0, a_delta("a", 0, "first", finish="stop"))

    assert [piece.text for piece in await taking] == ["first", "second"]


async def test_a_failure_before_anything_was_taken_is_the_whole_answer() -> None:
    mailbox = Mailbox(1)
    mailbox.put(0, a_delta("a", 0, "one"))
    mailbox.fail(BROKEN)

    with pytest.raises(RequestError, match="broken"):
        await mailbox.take()


async def test_a_failure_in_the_middle_comes_after_what_was_there() -> None:
    mailbox = Mailbox(1)
    mailbox.put(0, a_delta("a", 0, "one"))
    await mailbox.take()
    mailbox.put(0, a_delta("a", 1, "two"))
    mailbox.fail(BROKEN)

    (piece,) = await mailbox.take()

    assert piece.text == "two"
    with pytest.raises(RequestError, match="broken"):
        await mailbox.take()


async def test_the_first_failure_is_the_one_that_counts() -> None:
    mailbox = Mailbox(2)
    mailbox.fail(BROKEN)
    mailbox.fail(RequestError(FailureCode.TIMEOUT, "late"))

    with pytest.raises(RequestError, match="broken"):
        await mailbox.take_whole()


async def test_nothing_is_taken_for_a_client_that_is_gone() -> None:
    mailbox = Mailbox(1)
    mailbox.put(0, a_delta("a", 0, "one", finish="stop"))
    mailbox.leave()

    with pytest.raises(ClientGone):
        await mailbox.take()
    with pytest.raises(ClientGone):
        await mailbox.take_whole()
