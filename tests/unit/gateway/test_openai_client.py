"""What the real `openai` client makes of our answers: it parses them into OpenAI's own types."""

import asyncio
import math

import openai
import pytest

from common.messages import RequestFailed, TextLogprob
from tests.unit.gateway.playground import Playground, a_delta, playground

pytestmark = pytest.mark.anyio

GREETING = TextLogprob(
    "Hé", "Hé".encode(), -0.5, (("Hé", "Hé".encode(), -0.5), ("a", b"a", -2.0)), 7
)
END = TextLogprob("!", b"!", -math.inf, (("!", b"!", -math.inf), ("b", b"b", -1.0)), 8)


def client(gateway: Playground, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


async def test_a_chat_completion_with_choices_and_logprobs() -> None:
    async with playground() as gateway, client(gateway) as ai:
        await gateway.tokenizer_up()
        asked = asyncio.create_task(
            ai.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "hi"}],
                n=2,
                logprobs=True,
                top_logprobs=2,
            )
        )
        for request in await gateway.requests(2):
            gateway.deliver(
                a_delta(request.request_id, 0, "Hé", logprobs=(GREETING,), num_cached_tokens=4),
                a_delta(request.request_id, 1, "!", logprobs=(END,), finish="length"),
            )

        completion = await asked

        assert completion.id.startswith("chatcmpl-")
        assert completion.object == "chat.completion"
        assert [choice.index for choice in completion.choices] == [0, 1]
        for choice in completion.choices:
            assert choice.message.role == "assistant"
            assert choice.message.content == "Hé!"
            assert choice.finish_reason == "length"
            assert choice.logprobs is not None
            assert choice.logprobs.content is not None
            first, last = choice.logprobs.content
            assert (first.token, first.bytes) == ("Hé", [72, 195, 169])
            assert [top.token for top in first.top_logprobs] == ["Hé", "a"]
            assert last.logprob == -9999.0  # JSON has no -inf
        assert completion.usage is not None
        assert completion.usage.prompt_tokens == 5  # one prompt, however many choices
        assert completion.usage.completion_tokens == 4
        assert completion.usage.prompt_tokens_details is not None
        assert completion.usage.prompt_tokens_details.cached_tokens == 4


async def test_a_streamed_chat_completion() -> None:
    async with playground() as gateway, client(gateway) as ai:
        await gateway.tokenizer_up()
        opening = asyncio.create_task(
            ai.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "hi"}],
                stream=True,
                stream_options={"include_usage": True},
                logprobs=True,
            )
        )
        (request,) = await gateway.requests()
        gateway.deliver(a_delta(request.request_id, 0, "Hé", logprobs=(GREETING,)))
        gateway.deliver(a_delta(request.request_id, 1, "!", logprobs=(END,), finish="stop"))

        chunks = [chunk async for chunk in await opening]

        assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
        assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == "Hé!"
        tokens = [
            logprob.token
            for chunk in chunks
            for choice in chunk.choices
            if choice.logprobs is not None
            for logprob in choice.logprobs.content or []
        ]
        assert tokens == ["Hé", "!"]
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 2
        assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_a_completion_of_several_prompts_with_logprobs() -> None:
    async with playground() as gateway, client(gateway) as ai:
        await gateway.tokenizer_up()
        asked = asyncio.create_task(
            ai.completions.create(model="tiny", prompt=["a", "b"], n=2, logprobs=1)
        )
        for index, request in enumerate(await gateway.requests(4)):
            gateway.deliver(
                a_delta(request.request_id, 0, "Hé", logprobs=(GREETING,)),
                a_delta(request.request_id, 1, f"!{index}", logprobs=(END,), finish="stop"),
            )

        completion = await asked

        assert completion.object == "text_completion"
        assert [c.text for c in completion.choices] == [f"Hé!{index}" for index in range(4)]
        logprobs = completion.choices[3].logprobs
        assert logprobs is not None
        assert logprobs.tokens == ["Hé", "!"]
        assert logprobs.text_offset == [0, 2]
        assert logprobs.token_logprobs == [-0.5, -9999.0]
        assert logprobs.top_logprobs == [{"Hé": -0.5, "a": -2.0}, {"!": -9999.0, "b": -1.0}]
        assert completion.usage is not None
        assert completion.usage.prompt_tokens == 10
        assert completion.usage.total_tokens == 18


async def test_a_streamed_completion_keeps_counting_text_offsets() -> None:
    async with playground() as gateway, client(gateway) as ai:
        await gateway.tokenizer_up()
        opening = asyncio.create_task(
            ai.completions.create(model="tiny", prompt="a", stream=True, logprobs=1)
        )
        (request,) = await gateway.requests()
        gateway.deliver(a_delta(request.request_id, 0, "Hé", logprobs=(GREETING,)))
        chunks = []
        stream = await opening
        chunks.append(await anext(stream))
        gateway.deliver(a_delta(request.request_id, 1, "!", logprobs=(END,), finish="stop"))
        chunks += [chunk async for chunk in stream]

        offsets = [c.choices[0].logprobs.text_offset for c in chunks if c.choices[0].logprobs]
        assert offsets == [[0], [2]]
        assert [c.choices[0].text for c in chunks] == ["Hé", "!"]


async def test_the_synchronous_client_works_too() -> None:
    async with playground() as gateway:
        await gateway.tokenizer_up()

        def ask() -> list[str]:
            with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as ai:
                stream = ai.completions.create(model="tiny", prompt="a", stream=True)
                return [chunk.choices[0].text for chunk in stream]

        asked = asyncio.create_task(asyncio.to_thread(ask))
        (request,) = await gateway.requests()
        gateway.answer(request, "a", "b")

        assert "".join(await asked) == "ab"


async def test_errors_become_the_clients_own_exceptions() -> None:
    async with playground(api_key="s3cret") as gateway:
        async with client(gateway, "wrong") as ai:
            with pytest.raises(openai.AuthenticationError, match="API key"):
                await ai.models.list()
        async with client(gateway, "s3cret") as ai:
            with pytest.raises(openai.InternalServerError, match="not ready"):
                await ai.completions.create(model="tiny", prompt="x")
            await gateway.tokenizer_up()
            with pytest.raises(openai.NotFoundError, match="gpt-9"):
                await ai.completions.create(model="gpt-9", prompt="x")
            with pytest.raises(openai.BadRequestError, match="temperature") as caught:
                await ai.completions.create(model="tiny", prompt="x", temperature=3)
            assert caught.value.param == "temperature"
            assert caught.value.code == "invalid_request"


async def test_an_error_in_mid_stream_is_raised_by_the_client() -> None:
    async with playground() as gateway, client(gateway) as ai:
        peer = await gateway.tokenizer_up()
        opening = asyncio.create_task(ai.completions.create(model="tiny", prompt="x", stream=True))
        (request,) = await gateway.requests()
        gateway.deliver(a_delta(request.request_id, 0, "one"))
        stream = await opening
        gateway.link.deliver(peer, RequestFailed(request.request_id, "internal_error", "broken"))

        with pytest.raises(openai.APIError, match="broken"):
            _ = [chunk async for chunk in stream]


async def test_models_are_listed_and_retrieved() -> None:
    async with playground() as gateway, client(gateway) as ai:
        await gateway.tokenizer_up()

        assert [model.id async for model in ai.models.list()] == ["tiny"]
        assert (await ai.models.retrieve("tiny")).object == "model"
