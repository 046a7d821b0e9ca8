"""Resolves what a request asks for against what the mesh can do. Pure."""

from collections.abc import Sequence

import msgspec

from common.errors import FailureCode, RequestError
from common.messages import ChatPrompt, Limits, SamplingParams, TokenizeRequest, TokenPrompt
from common.token_ids import unpack_ids
from services.tokenizer.model_info import ModelInfo


def resolve_sampling(
    request: TokenizeRequest, num_prompt_tokens: int, limits: Limits, model: ModelInfo
) -> SamplingParams:
    """Fill in defaults, `max_tokens` and stop tokens; refuse what can never be served.

    An explicit `max_tokens` that the model's context cannot hold is refused, as vLLM does. One that
    only the KV cache cannot hold is lowered: how large the cache is says nothing about the request,
    and the output then ends with `length`.

    Returns:
        Parameters with `1 <= max_tokens`, the prompt and the output within both limits.

    Raises:
        RequestError: naming the limit and the value.
    """
    _check_prompt_length(request, num_prompt_tokens, limits)
    sampling = request.sampling
    _check_ids(request, limits.vocab_size)
    if sampling.max_tokens is not None:
        _check_total_length(num_prompt_tokens, sampling.max_tokens, limits.max_model_len)
    defaults = model.sampling_defaults
    applied = {name: defaults[name] for name in request.defaulted if name in defaults}
    sampling = msgspec.structs.replace(sampling, **applied)
    num_left = min(limits.max_model_len, limits.kv_capacity_tokens) - num_prompt_tokens
    eos_ids = () if sampling.ignore_eos else model.eos_ids
    return msgspec.structs.replace(
        sampling,
        max_tokens=num_left if sampling.max_tokens is None else min(sampling.max_tokens, num_left),
        stop_token_ids=tuple(dict.fromkeys((*eos_ids, *sampling.stop_token_ids))),
    )


def _check_prompt_length(request: TokenizeRequest, num_tokens: int, limits: Limits) -> None:
    param = "messages" if isinstance(request.prompt, ChatPrompt) else "prompt"
    if num_tokens >= limits.max_model_len:
        raise RequestError(
            FailureCode.CONTEXT_LENGTH_EXCEEDED,
            f"This model's maximum context length is {limits.max_model_len} tokens, but the prompt "
            f"has {num_tokens} tokens. At least one must be left for the output.",
            param,
        )
    if num_tokens >= limits.kv_capacity_tokens:
        raise RequestError(
            FailureCode.KV_CACHE_EXCEEDED,
            f"The KV cache of this server holds {limits.kv_capacity_tokens} tokens, but the prompt "
            f"has {num_tokens} tokens. At least one must be left for the output.",
            param,
        )


def _check_total_length(num_prompt_tokens: int, max_tokens: int, max_model_len: int) -> None:
    total = num_prompt_tokens + max_tokens
    if total > max_model_len:
        raise RequestError(
            FailureCode.CONTEXT_LENGTH_EXCEEDED,
            f"This model's maximum context length is {max_model_len} tokens, but {total} were "
            f"requested: {num_prompt_tokens} in the prompt and {max_tokens} for the output.",
            "max_tokens",
        )


def _check_ids(request: TokenizeRequest, vocab_size: int) -> None:
    sampling = request.sampling
    by_param: dict[str, Sequence[int]] = {
        "logit_bias": [token_id for token_id, _ in sampling.logit_bias],
        "stop_token_ids": sampling.stop_token_ids,
    }
    if isinstance(request.prompt, TokenPrompt):
        by_param["prompt"] = unpack_ids(request.prompt.token_ids)
    for param, token_ids in by_param.items():
        if not token_ids or (min(token_ids) >= 0 and max(token_ids) < vocab_size):
            continue
        wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise RequestError(
            FailureCode.INVALID_REQUEST,
            f"{param} has token id {wrong}, but the ids of this model are 0 to {vocab_size - 1}.",
            param,
        )
