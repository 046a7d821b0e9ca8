"""A server under measurement: where it is, what it serves, and which requests it takes."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
from tokenizers import Tokenizer

from common.errors import ConfigError, StartupError
from common.workload.draw import Draw
from common.workload.timeline import RequestShape
from splitfuse.bench.prompts import IdPrompts, Prompts, TextPrompts
from splitfuse.bench.sse_client import Endpoint, RequestFailed, complete

PROBE_LIMIT_S = 120.0
PROBE_SHAPE = RequestShape(num_prompt_tokens=4, num_output_tokens=2)


@dataclass(frozen=True, slots=True)
class Target:
    """Everything that a request's body depends on besides its shape."""

    endpoint: Endpoint
    model: str
    prompts: Prompts
    #: it takes what OpenAI's API lacks: outputs of exact length, an event for a token without text
    #: of its own (the first bytes of a character), and counts at the end of a stream
    takes_extras: bool = True
    temperature: float = 0.0

    def body(self, shape: RequestShape, draw: Draw) -> bytes:
        """The JSON of a request of this shape, with a prompt of its own."""
        fields: dict[str, Any] = {
            "model": self.model,
            "prompt": self.prompts.make(shape.num_prompt_tokens, draw),
            "max_tokens": shape.num_output_tokens,
            "temperature": self.temperature,
            "stream": True,
        }
        if self.takes_extras:
            fields |= {
                "ignore_eos": True,
                "return_token_ids": True,
                "stream_options": {"include_usage": True},
            }
        if shape.priority:
            fields["priority"] = shape.priority
        if shape.tenant:
            fields["cache_salt"] = shape.tenant
        return msgspec.json.encode(fields)

    def bodies(self, shapes: Sequence[RequestShape], draw: Draw) -> list[bytes]:
        """One per shape; made before a load begins, so that the client only sends."""
        return [self.body(shape, draw) for shape in shapes]


def served_model(url: str, api_key: str | None) -> str:
    """The first model that the server lists.

    Raises:
        StartupError: it does not answer, or lists none.
    """
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        response = httpx.get(f"{url.rstrip('/')}/v1/models", headers=headers, timeout=30)
        response.raise_for_status()
        name = response.json()["data"][0]["id"]
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise StartupError(
            f"{url} names no model ({type(error).__name__}: {error}); --served-model-name does"
        ) from error
    return str(name)


def find_target(
    endpoint: Endpoint, model: str, tokenizer: Tokenizer | None, temperature: float
) -> Target:
    """The target with the richest requests that it takes, found by asking.

    Args:
        tokenizer: the model's: prompts can then be text, and ids span its vocabulary.

    Raises:
        ConfigError: it takes none of them; has its words.
    """
    kinds: list[Prompts] = [IdPrompts()]
    if tokenizer is not None:
        kinds = [IdPrompts(tokenizer.get_vocab_size()), TextPrompts(tokenizer)]
    refusals = []
    for prompts, extras in [(prompts, extras) for prompts in kinds for extras in (True, False)]:
        target = Target(endpoint, model, prompts, extras, temperature)
        try:
            _ask(target)
        except RequestFailed as failure:
            refusals.append(str(failure))
        else:
            return target
    hint = "" if tokenizer else " (prompts were token ids: --tokenizer lets them be text)"
    raise ConfigError(f"the server refused every kind of request{hint}: {refusals[-1]}")


def _ask(target: Target) -> None:
    body = target.body(PROBE_SHAPE, random.Random(0))  # noqa: S311  no secret
    asyncio.run(complete(target.endpoint, body, limit_s=PROBE_LIMIT_S))
