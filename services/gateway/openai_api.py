"""OpenAI's request bodies, checked and turned into what the mesh understands.

`parse_chat` and `parse_completion` take the bytes of a body and return a `Generation`, or raise a
`RequestError` whose message names the field, the limit and the value. Types are strict: 1.0 is not
an integer and "1" is not a number; NaN, lone surrogates and bytes that are not UTF-8 are not JSON.
Unknown fields are kept aside for the log; fields that we know and cannot honour are refused, so
nothing that changes an answer is ever ignored. `null` means "not given".
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
)

from common.config import MAX_STREAM_INTERVAL
from common.errors import FailureCode, RequestError
from common.messages import (
    ChatPrompt,
    Prompt,
    SamplingParams,
    TextOptions,
    TokenizeRequest,
)
from services.gateway.openai_fields import (
    INT32_MAX,
    Content,
    Count,
    LogitBias,
    Prompts,
    StopStrings,
    TokenIds,
)

Kind: TypeAlias = Literal["chat", "completion"]
Form = TypeVar("Form", bound="_Body")

MAX_CHOICES = 128
MAX_LOGPROBS = 20
# Tokens that travel together when nobody reads along; what the loss of a service costs is so many.
WHOLE_ANSWER_INTERVAL = 16
MAX_NESTING = 64  # of objects and lists in messages and chat_template_kwargs
COMPLETION_MAX_TOKENS = 16  # what OpenAI's completions endpoint does when not told otherwise

_UINT64 = 2**64

# What OpenAI and other engines understand and this server does not, with the values that mean
# "do nothing" and are therefore welcome.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (),
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "documents": ([],),
    "early_stopping": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_choice": ([],),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logit_processors": ([],),
    "logits_processors": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_logprobs": (),
    "reasoning_effort": ("none",),
    "request_id": (),
    "response_format": ({"type": "text"},),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_UNSUPPORTED_IN_CHAT = {**_UNSUPPORTED, "echo": (False,), "prompt": ()}
_UNSUPPORTED_IN_COMPLETION = {
    **_UNSUPPORTED,
    "add_generation_prompt": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "max_completion_tokens": (),
    "messages": (),
    "top_logprobs": (),
}


@dataclass(frozen=True, slots=True)
class Generation:
    """What one HTTP body asks for: `len(prompts) * n` sequences."""

    kind: Kind
    model: str
    prompts: tuple[Prompt, ...]
    n: int
    sampling: SamplingParams  # its seed is for choice 0; see `tokenize_requests`
    seed_given: bool
    defaulted: tuple[str, ...]  # fields of `sampling` left to the model's own defaults
    text: TextOptions
    stream: bool
    stream_interval: int | None  # tokens sent together; None: the gateway's own
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool  # of the output, beside its text
    priority: int
    tenant: str
    user: str | None
    unknown_fields: tuple[str, ...]


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class StreamOptions(_Strict):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None


class _Body(_Strict):
    """What both endpoints understand."""

    model: str = Field(min_length=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=INT32_MAX)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: LogitBias | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: Count | None = None
    min_tokens: int | None = Field(None, ge=0, le=INT32_MAX)
    ignore_eos: bool | None = None
    stop: StopStrings | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stream_interval: int | None = Field(None, ge=1, le=MAX_STREAM_INTERVAL)
    return_token_ids: bool | None = None
    user: str | None = None
    cache_salt: str | None = Field(None, min_length=1, max_length=256)
    priority: int | None = Field(None, ge=-(2**31), le=INT32_MAX)


class CompletionBody(_Body):
    prompt: Prompts
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)


class ChatBody(_Body):
    messages: list[Message] = Field(min_length=1, fail_fast=True)
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


# ── from a body to a generation ──────────────────────────────────────────────────────────────────


def parse_completion(body: bytes) -> Generation:
    """Read a body of POST /v1/completions.

    Raises:
        RequestError: INVALID_REQUEST, with the field as `param`.
    """
    form = _validate(CompletionBody, body, _UNSUPPORTED_IN_COMPLETION)
    if form.echo and form.logprobs is not None:
        raise _invalid("echo together with logprobs is not supported", "echo")
    # An explicit null lifts OpenAI's default: up to the model's limit.
    is_given = "max_tokens" in form.model_fields_set
    max_tokens = form.max_tokens if is_given else COMPLETION_MAX_TOKENS
    return _generation("completion", form, form.prompt, max_tokens, form.logprobs, bool(form.echo))


def parse_chat(body: bytes) -> Generation:
    """Read a body of POST /v1/chat/completions.

    Raises:
        RequestError: INVALID_REQUEST, with the field as `param`.
    """
    form = _validate(ChatBody, body, _UNSUPPORTED_IN_CHAT)
    if form.top_logprobs is not None and not form.logprobs:
        raise _invalid("top_logprobs needs logprobs to be true", "top_logprobs")
    if form.max_tokens and form.max_completion_tokens not in (None, form.max_tokens):
        raise _invalid(
            f"max_tokens ({form.max_tokens}) and max_completion_tokens "
            f"({form.max_completion_tokens}) differ; give one of them",
            "max_completion_tokens",
        )
    logprobs = (form.top_logprobs or 0) if form.logprobs else None
    max_tokens = form.max_completion_tokens or form.max_tokens
    return _generation("chat", form, (_chat_prompt(form),), max_tokens, logprobs, echo=False)


def _chat_prompt(form: ChatBody) -> ChatPrompt:
    continued = bool(form.continue_final_message)
    if continued and form.add_generation_prompt:
        raise _invalid(
            "continue_final_message and add_generation_prompt exclude each other",
            "continue_final_message",
        )
    add_prompt = form.add_generation_prompt
    return ChatPrompt(
        messages=msgspec.json.encode(
            [_message_json(index, message) for index, message in enumerate(form.messages)]
        ),
        add_generation_prompt=not continued if add_prompt is None else add_prompt,
        continue_final_message=continued,
        chat_template_kwargs=msgspec.json.encode(form.chat_template_kwargs or {}),
    )


def _message_json(index: int, message: Message) -> dict[str, Any]:
    extra = message.model_extra or {}
    for field in ("tool_calls", "function_call", "audio"):
        if extra.get(field):
            raise _invalid(f"{field} in a message is not supported", f"messages[{index}].{field}")
    if message.content is None and message.role != "assistant":
        raise _invalid(
            f"a message of role {message.role!r} needs content", f"messages[{index}].content"
        )
    return {"role": message.role, "content": message.content or "", **extra}


def _generation(
    kind: Kind,
    form: _Body,
    prompts: tuple[Prompt, ...],
    max_tokens: int | None,
    logprobs: int | None,
    echo: bool,
) -> Generation:
    if max_tokens is not None and form.min_tokens is not None and form.min_tokens > max_tokens:
        raise _invalid(
            f"min_tokens ({form.min_tokens}) is more than max_tokens ({max_tokens})", "min_tokens"
        )
    for name in ("stream_options", "stream_interval"):
        if getattr(form, name) is not None and not form.stream:
            raise _invalid(f"{name} needs stream to be true", name)
    options = form.stream_options or StreamOptions()
    sampling, defaulted = _sampling(form, max_tokens, logprobs)
    return Generation(
        kind=kind,
        model=form.model,
        prompts=prompts,
        n=form.n or 1,
        sampling=sampling,
        seed_given=form.seed is not None,
        defaulted=defaulted,
        text=TextOptions(
            stop=tuple(form.stop or ()),
            include_stop_str_in_output=bool(form.include_stop_str_in_output),
            skip_special_tokens=form.skip_special_tokens is not False,
            echo=echo,
        ),
        stream=bool(form.stream),
        stream_interval=form.stream_interval,
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.continuous_usage_stats),
        return_token_ids=bool(form.return_token_ids),
        priority=form.priority or 0,
        tenant=form.cache_salt or "",
        user=form.user,
        unknown_fields=_unknown_fields(form),
    )


def _sampling(
    form: _Body, max_tokens: int | None, logprobs: int | None
) -> tuple[SamplingParams, tuple[str, ...]]:
    top_k = form.top_k if form.top_k != -1 else 0  # vLLM's spelling of "off"
    wanted: dict[str, Any] = {
        "temperature": form.temperature,
        "top_p": form.top_p,
        "top_k": top_k,
        "min_p": form.min_p,
        "repetition_penalty": form.repetition_penalty,
        "presence_penalty": form.presence_penalty,
        "frequency_penalty": form.frequency_penalty,
        "min_tokens": form.min_tokens,
        "ignore_eos": form.ignore_eos,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    defaulted = tuple(name for name in wanted if name not in given)
    if max_tokens is None and "max_tokens" not in form.model_fields_set:
        defaulted = (*defaulted, "max_tokens")
    return (
        SamplingParams(
            **given,
            logit_bias=form.logit_bias or (),
            seed=(form.seed or 0) % _UINT64,
            max_tokens=max_tokens,
            stop_token_ids=tuple(form.stop_token_ids or ()),
            logprobs=logprobs,
        ),
        defaulted,
    )


def tokenize_requests(
    generation: Generation,
    completion_id: str,
    drawn_seed: int,
    target_tbt_ms: float | None = None,
    stream_interval: int = 1,
) -> list[TokenizeRequest]:
    """One request per sequence, in the order of the choices: prompt by prompt, n of each.

    With a seed of the client's, choice j of every prompt samples as it would if its prompt had
    come alone; without one, all sequences differ. `drawn_seed` is in [0, 2**64), `target_tbt_ms`
    holds for each sequence, and `stream_interval` for streams that do not ask for their own.
    """
    interval = generation.stream_interval or stream_interval
    if not generation.stream:
        interval = WHOLE_ANSWER_INTERVAL
    requests = []
    for prompt_index, prompt in enumerate(generation.prompts):
        for choice in range(generation.n):
            index = prompt_index * generation.n + choice
            seed = (
                derive_seed(generation.sampling.seed, choice)
                if generation.seed_given
                else derive_seed(drawn_seed, index)
            )
            requests.append(
                TokenizeRequest(
                    request_id=f"{completion_id}-{index}",
                    prompt=prompt,
                    sampling=msgspec.structs.replace(generation.sampling, seed=seed),
                    text=generation.text,
                    priority=generation.priority,
                    tenant=generation.tenant,
                    defaulted=generation.defaulted,
                    target_tbt_ms=target_tbt_ms,
                    stream_interval=interval,
                )
            )
    return requests


def derive_seed(seed: int, index: int) -> int:
    """The seed of the index-th choice: `seed` for the first, then SplitMix64's outputs."""
    if index == 0:
        return seed
    mixed = (seed + index * 0x9E3779B97F4A7C15) % _UINT64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % _UINT64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % _UINT64
    return mixed ^ (mixed >> 31)


# ── reading and refusing ─────────────────────────────────────────────────────────────────────────


def _validate(form: type[Form], body: bytes, unsupported: Mapping[str, tuple[Any, ...]]) -> Form:
    raw = _decode(body)
    for name, neutral in unsupported.items():
        value = raw.get(name)
        if value is not None and value not in neutral:
            raise _invalid(f"{name} = {reprlib.repr(value)} is not supported here", name)
    for name in ("messages", "chat_template_kwargs"):
        _check_nesting(name, raw.get(name))
    try:
        return form.model_validate(raw)
    except ValidationError as error:
        raise _first_problem(error) from None


def _decode(body: bytes) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(body)
    except UnicodeDecodeError as error:
        raise _invalid(f"the body is not valid UTF-8: {error.reason}") from None
    except RecursionError:
        raise _invalid("the body is nested too deeply") from None
    except ValueError as error:  # msgspec's errors, and integers of thousands of digits
        raise _invalid(f"the body is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise _invalid("the body must be a JSON object")
    return raw


def _check_nesting(name: str, value: Any) -> None:
    """What goes on to the chat template is read by code that recurses."""
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise _invalid(f"{name} is nested more than {MAX_NESTING} levels deep", name)


def _first_problem(error: ValidationError) -> RequestError:
    problem = error.errors(include_url=False, include_context=False)[0]
    param = ""
    for part in problem["loc"]:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
    message = f"{param}: {problem['msg']}"
    if problem["type"] == "missing":
        message = f"{param} is required"
    elif not isinstance(problem["input"], dict | list):
        message += f", got {reprlib.repr(problem['input'])}"
    return _invalid(message, param)


def _unknown_fields(form: _Body) -> tuple[str, ...]:
    known = _UNSUPPORTED_IN_CHAT if isinstance(form, ChatBody) else _UNSUPPORTED_IN_COMPLETION
    names = [name for name in form.model_extra or {} if name not in known]
    if form.stream_options is not None:
        names += [f"stream_options.{name}" for name in form.stream_options.model_extra or {}]
    return tuple(names)


def _invalid(message: str, param: str | None = None) -> RequestError:
    return RequestError(FailureCode.INVALID_REQUEST, message, param)
