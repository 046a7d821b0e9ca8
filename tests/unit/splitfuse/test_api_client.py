import asyncio
import signal
import threading
from collections.abc import Iterator

import pytest

from splitfuse.api_client import AsyncClient, Client
from splitfuse.generate import DEFAULT_MAX_NEW_TOKENS, Response, ServerError
from tests.unit.splitfuse.fake_openai import PATIENCE_S, FakeOpenAI, fake_openai


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with fake_openai() as running:
        yield running


@pytest.fixture
def client(server: FakeOpenAI) -> Iterator[Client]:
    with Client(server.url) as made:
        yield made


def test_responses_come_in_the_order_of_the_prompts(client: Client) -> None:
    prompts = [f"{i} b" for i in range(17)]

    responses = client(prompts)

    assert responses == [Response(f"b {i}", 7, 2, "stop") for i in range(17)]


def test_prompts_of_one_call_are_sent_at_once(server: FakeOpenAI, client: Client) -> None:
    server.together = threading.Barrier(5)  # breaks, and the call fails, if they come one by one

    assert len(client([f"{i}" for i in range(5)])) == 5


def test_a_single_prompt_gives_a_list_of_one(client: Client) -> None:
    assert [str(response) for response in client("a b")] == ["b a"]


def test_the_full_text_begins_with_the_prompt(client: Client) -> None:
    (response,) = client("a b", return_full_text=True)

    assert response.generated_text == "a bb a"


def test_a_stream_comes_piece_by_piece_and_ends_with_its_reason(client: Client) -> None:
    pieces = list(client.stream("a b c"))

    assert [piece.generated_text for piece in pieces] == ["c ", "b ", "a "]
    assert [piece.finish_reason for piece in pieces] == [None, None, "stop"]
    assert [piece.generated_length for piece in pieces] == [1, 2, 3]


def test_the_first_piece_of_a_full_text_carries_the_prompt(client: Client) -> None:
    pieces = client.stream("a b", return_full_text=True)

    assert [piece.generated_text for piece in pieces] == ["a bb ", "a "]


def test_closing_a_stream_closes_its_connection(server: FakeOpenAI, client: Client) -> None:
    pieces = client.stream("slow")
    assert next(pieces).generated_text == "zzz "

    pieces.close()  # type: ignore[attr-defined]  # a generator

    assert server.client_gone.wait(PATIENCE_S)


def test_without_a_length_a_default_is_asked_for(server: FakeOpenAI, client: Client) -> None:
    client("a")

    assert server.bodies[0]["max_tokens"] == DEFAULT_MAX_NEW_TOKENS


def test_max_length_leaves_what_the_prompt_does_not_take(
    server: FakeOpenAI, client: Client
) -> None:
    client("a", max_length=20)

    assert [body["max_tokens"] for body in server.bodies] == [1, 13]  # the prompt has 7 tokens


def test_max_length_without_room_for_output_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match=r"max_length \(7\).*prompt of 7 tokens"):
        client("a", max_length=7)


def test_a_bad_parameter_is_refused_before_anything_is_sent(
    server: FakeOpenAI, client: Client
) -> None:
    with pytest.raises(ValueError, match="temperature"):
        client(["a", "b"], temperature=-1.0)

    assert server.bodies == []


def test_a_refusal_carries_the_servers_words(client: Client) -> None:
    with pytest.raises(ServerError, match="I refuse") as caught:
        client(["a", "refuse", "b"])

    assert (caught.value.status, caught.value.code) == (400, "invalid_request")


def test_a_failure_in_the_middle_of_a_stream_is_raised_behind_its_pieces(client: Client) -> None:
    pieces = client.stream("fail x")
    assert next(pieces).generated_text == "x "

    with pytest.raises(ServerError, match="I failed"):
        next(pieces)


def test_ctrl_c_in_a_stream_is_an_interrupt_and_cancels_it(
    server: FakeOpenAI, client: Client
) -> None:
    pieces = client.stream("stuck")
    next(pieces)
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        for _ in pieces:
            pass

    assert server.client_gone.wait(PATIENCE_S)


def test_the_key_is_sent_as_a_bearer_token(server: FakeOpenAI) -> None:
    with Client(server.url, api_key="k") as client:
        client("a")

    assert server.keys == ["Bearer k"]


def test_an_empty_key_variable_means_no_key(
    server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITFUSE_API_KEY", "")

    with Client(server.url) as client:
        client("a")

    assert server.keys == [None]


def test_a_client_can_be_closed_twice(client: Client) -> None:
    client.close()
    client.close()


def test_the_async_twin_does_the_same(server: FakeOpenAI) -> None:
    async def use() -> tuple[list[Response], list[str]]:
        async with AsyncClient(server.url) as client:
            responses = await client(["a b", "c d"])
            return responses, [str(piece) async for piece in client.stream("e f")]

    responses, pieces = asyncio.run(use())

    assert [str(response) for response in responses] == ["b a", "d c"]
    assert pieces == ["f ", "e "]


def test_cancelling_an_async_call_closes_its_connections(server: FakeOpenAI) -> None:
    async def use() -> None:
        async with AsyncClient(server.url) as client:
            pieces = client.stream("slow")
            await anext(pieces)
            waiting = asyncio.ensure_future(_drain(pieces))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    async def _drain(pieces: object) -> None:
        async for _ in pieces:  # type: ignore[attr-defined]
            pass

    asyncio.run(use())

    assert server.client_gone.wait(PATIENCE_S)
