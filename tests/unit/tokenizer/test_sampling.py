import pytest

from common.errors import FailureCode, RequestError
from common.messages import (
    ChatPrompt,
    Limits,
    Prompt,
    SamplingParams,
    TextOptions,
    TextPrompt,
    TokenizeRequest,
    TokenPrompt,
)
from common.token_ids import pack_ids
from services.tokenizer.model_info import ModelInfo
from services.tokenizer.sampling import resolve_sampling

LIMITS = Limits("m", max_model_len=100, kv_capacity_tokens=1000, vocab_size=420)
MODEL = ModelInfo("m", 419, eos_ids=(2, 0), sampling_defaults={"temperature": 0.6, "top_k": 40})
TEXT = TextPrompt("hi")


def resolve(
    sampling: SamplingParams,
    *,
    num_prompt_tokens: int = 10,
    prompt: Prompt = TEXT,
    limits: Limits = LIMITS,
    model: ModelInfo = MODEL,
    defaulted: tuple[str, ...] = (),
) -> SamplingParams:
    request = TokenizeRequest("r", prompt, sampling, TextOptions(), defaulted=defaulted)
    return resolve_sampling(request, num_prompt_tokens, limits, model)


def refusal(sampling: SamplingParams, **kwargs: object) -> RequestError:
    with pytest.raises(RequestError) as caught:
        resolve(sampling, **kwargs)  # type: ignore[arg-type]
    return caught.value


def test_the_model_fills_in_what_the_client_left_out_and_nothing_else() -> None:
    given = SamplingParams(temperature=1.0, top_k=0, top_p=0.9)
    resolved = resolve(given, defaulted=("top_k", "top_p"))
    assert (resolved.temperature, resolved.top_k, resolved.top_p) == (1.0, 40, 0.9)


def test_without_max_tokens_the_output_may_fill_the_context() -> None:
    assert resolve(SamplingParams()).max_tokens == 90
    assert resolve(SamplingParams(), num_prompt_tokens=99).max_tokens == 1


def test_the_models_own_max_new_tokens_is_lowered_to_what_fits() -> None:
    model = ModelInfo("m", 419, sampling_defaults={"max_tokens": 50})
    defaulted = ("max_tokens",)
    assert resolve(SamplingParams(), model=model, defaulted=defaulted).max_tokens == 50
    resolved = resolve(SamplingParams(), model=model, defaulted=defaulted, num_prompt_tokens=80)
    assert resolved.max_tokens == 20


def test_max_tokens_is_lowered_to_the_kv_cache() -> None:
    limits = Limits("m", max_model_len=100, kv_capacity_tokens=48, vocab_size=420)
    assert resolve(SamplingParams(max_tokens=60), limits=limits).max_tokens == 38


def test_a_prompt_as_long_as_the_context_is_refused_with_both_numbers() -> None:
    error = refusal(SamplingParams(), num_prompt_tokens=100)
    assert error.code == FailureCode.CONTEXT_LENGTH_EXCEEDED
    assert error.message.startswith(
        "This model's maximum context length is 100 tokens, but the prompt has 100 tokens"
    )
    assert error.param == "prompt"
    assert refusal(SamplingParams(), num_prompt_tokens=101, prompt=ChatPrompt(b"[]")).param == (
        "messages"
    )


def test_max_tokens_beyond_the_context_is_refused_with_both_numbers() -> None:
    assert resolve(SamplingParams(max_tokens=90)).max_tokens == 90
    error = refusal(SamplingParams(max_tokens=91))
    assert (error.code, error.param) == (FailureCode.CONTEXT_LENGTH_EXCEEDED, "max_tokens")
    assert "100" in error.message
    assert "10 in the prompt and 91 for the output" in error.message


def test_a_prompt_that_can_never_fit_the_kv_cache_is_refused_with_both_numbers() -> None:
    limits = Limits("m", max_model_len=100, kv_capacity_tokens=48, vocab_size=420)
    error = refusal(SamplingParams(), num_prompt_tokens=48, limits=limits)
    assert error.code == FailureCode.KV_CACHE_EXCEEDED
    assert "holds 48 tokens" in error.message
    assert "has 48 tokens" in error.message


def test_the_models_end_tokens_stop_the_output_besides_the_clients() -> None:
    assert resolve(SamplingParams(stop_token_ids=(7, 2))).stop_token_ids == (2, 0, 7)
    assert resolve(SamplingParams(stop_token_ids=(7,), ignore_eos=True)).stop_token_ids == (7,)


@pytest.mark.parametrize(
    ("sampling", "param", "wrong"),
    [
        (SamplingParams(logit_bias=((3, 1.0), (420, -1.0))), "logit_bias", 420),
        (SamplingParams(stop_token_ids=(-1,)), "stop_token_ids", -1),
    ],
)
def test_ids_outside_the_vocabulary_are_refused_by_name(
    sampling: SamplingParams, param: str, wrong: int
) -> None:
    error = refusal(sampling)
    assert (error.code, error.param) == (FailureCode.INVALID_REQUEST, param)
    assert f"{param} has token id {wrong}, but the ids of this model are 0 to 419" in error.message


@pytest.mark.parametrize("wrong", [-1, 420, 2**31 - 1])
def test_a_prompt_id_outside_the_vocabulary_is_refused(wrong: int) -> None:
    error = refusal(SamplingParams(), prompt=TokenPrompt(pack_ids([0, 419, wrong, 5])))
    assert f"prompt has token id {wrong}, but" in error.message
    assert resolve(SamplingParams(), prompt=TokenPrompt(pack_ids([0, 419])))
