"""What the Python API asks for and gets: parameters, request bodies and responses. Pure.

Parameters have DeepSpeed-MII's names. Those that the person does not give are the server's
business: the model's own sampling defaults apply.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

DEFAULT_MAX_NEW_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Response:
    """The completion of one prompt, or, from `stream`, the newest piece of it.

    Lengths are in tokens. In a stream they count from the start, and `finish_reason` is None until
    the last piece; it is "stop" or "length" then.
    """

    generated_text: str
    prompt_length: int
    generated_length: int
    finish_reason: str | None

    def __str__(self) -> str:
        return self.generated_text


class ServerError(RuntimeError):
    """The server refused or failed a request.

    Attributes:
        status: the HTTP status.
        code: what kind of failure, e.g. "context_length_exceeded"; None if it did not say.
    """

    def __init__(self, message: str, status: int, code: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of everything that generates.

    max_new_tokens: tokens of output at most (default 128).
    max_length: tokens of prompt and output together at most; instead of max_new_tokens.
    min_new_tokens: tokens of output at least: before, nothing but this many ends a completion.
    ignore_eos: go on after the model has said that it is done.
    return_full_text: begin the text with the prompt.
    do_sample: False for the most probable token each time.
    temperature, top_p, top_k, min_p: narrow or widen the choice of tokens.
    repetition_penalty, presence_penalty, frequency_penalty: against repetition.
    stop: a string, or several, that ends the completion; it is not part of the text.
    seed: the same seed gives the same completion.
    """

    max_new_tokens: int | None
    max_length: int | None
    min_new_tokens: int
    ignore_eos: bool
    return_full_text: bool
    do_sample: bool | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    stop: str | list[str]
    seed: int | None


class GenerateParams(BaseModel):
    """`GenerateOptions`, checked."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    max_new_tokens: int | None = Field(None, ge=1)
    max_length: int | None = Field(None, ge=2)
    min_new_tokens: int = Field(0, ge=0)
    ignore_eos: bool = False
    return_full_text: bool = False
    do_sample: bool | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    stop: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    ] = Field(default_factory=list)
    seed: int | None = Field(None, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _agree(self) -> "GenerateParams":
        if self.max_length is not None and self.max_new_tokens is not None:
            raise ValueError("max_length and max_new_tokens exclude each other")
        if self.do_sample is False and self.temperature:
            raise ValueError(f"do_sample=False and temperature={self.temperature} disagree")
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens ({self.min_new_tokens}) is more than "
                f"max_new_tokens ({self.max_new_tokens})"
            )
        return self


def check_params(options: Mapping[str, Any]) -> GenerateParams:
    """Keyword arguments as parameters.

    Raises:
        TypeError: a name is unknown.
        ValueError: a value cannot be used; names it.
    """
    unknown = sorted(options.keys() - GenerateParams.model_fields.keys())
    if unknown:
        known = ", ".join(GenerateParams.model_fields)
        raise TypeError(f"unknown generate parameter: {', '.join(unknown)} (known are {known})")
    try:
        return GenerateParams(**options)
    except ValidationError as error:
        problem = error.errors()[0]
        where = f"{problem['loc'][0]}: " if problem["loc"] else ""
        value = f", got {problem['input']!r}" if problem["loc"] else ""
        message = problem["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}{message}{value}") from None


def check_prompts(prompts: str | list[str]) -> list[str]:
    """One prompt or several, as a list.

    Raises:
        TypeError: something is not a string.
        ValueError: a prompt is empty.
    """
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    for index, prompt in enumerate(listed):
        if not isinstance(prompt, str):
            raise TypeError(f"prompt {index} must be a string, not {type(prompt).__name__}")
        if not prompt:
            raise ValueError(f"prompt {index} is empty")
    return listed


def completion_body(
    model: str, prompt: str, params: GenerateParams, max_tokens: int, *, stream: bool
) -> dict[str, Any]:
    """The body of POST /v1/completions for one prompt."""
    sampling = params.model_dump(
        exclude_none=True,
        include={
            *("temperature", "top_p", "top_k", "min_p", "seed"),
            *("repetition_penalty", "presence_penalty", "frequency_penalty"),
        },
    )
    if params.do_sample is False:
        sampling["temperature"] = 0.0
    elif params.do_sample:
        sampling.setdefault("temperature", 1.0)
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "min_tokens": min(params.min_new_tokens, max_tokens),
        "ignore_eos": params.ignore_eos,
        "stop": params.stop,
        "stream": stream,
        **sampling,
    }
    if stream:
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return body


def parse_answer(answer: Mapping[str, Any]) -> Response:
    """The whole answer, or one chunk of a stream that has a choice."""
    (choice,) = answer["choices"]
    usage = answer["usage"]
    return Response(
        generated_text=choice["text"],
        prompt_length=usage["prompt_tokens"],
        generated_length=usage["completion_tokens"],
        finish_reason=choice["finish_reason"],
    )


def parse_error(status: int, body: bytes) -> ServerError:
    """What the server said with a status that is not 200, or in the middle of a stream."""
    try:
        error = json.loads(body)["error"]
        return ServerError(str(error["message"]), status, error.get("code"))
    except (ValueError, KeyError, TypeError):
        text = body[:200].decode(errors="replace")
        return ServerError(f"the server answered {status}: {text}", status, None)
