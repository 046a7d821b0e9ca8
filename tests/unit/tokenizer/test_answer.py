import pytest

from common.messages import (
    Prompt,
    SamplingParams,
    TextDelta,
    TextLogprob,
    TextOptions,
    TextPrompt,
    TokenDelta,
    TokenizeRequest,
    TokenLogprob,
    TokenPrompt,
)
from common.token_ids import pack_ids, unpack_ids
from services.tokenizer.answer import Answer
from tests.unit.tokenizer import models

END = 2  # <|im_end|>, the model's own
DEFAULT = TextOptions()


def ids_of(text: str) -> list[int]:
    return models.byte_level().encode(text).ids


def answer(
    text: TextOptions = DEFAULT,
    sampling: SamplingParams | None = None,
    prompt: Prompt | None = None,
) -> Answer:
    sampling = sampling or SamplingParams(max_tokens=1000, stop_token_ids=())
    request = TokenizeRequest("r", prompt or TextPrompt("hi"), sampling, text)
    resolved = SamplingParams(
        max_tokens=sampling.max_tokens, stop_token_ids=(END, *sampling.stop_token_ids)
    )
    vocabulary = models.encoder("byte level").vocabulary
    return Answer(
        vocabulary,
        request,
        resolved,
        (END,),
        pack_ids(ids_of("hi")),
    )


def feed(
    target: Answer, ids: list[int], finish: str | None = None, stop_token: int | None = None
) -> TextDelta:
    delta = TokenDelta(
        "r~1",
        target.num_output_tokens,
        pack_ids(ids),
        finish_reason=finish,  # type: ignore[arg-type]
        stop_token_id=stop_token,
        num_cached_tokens=16,
    )
    return target.advance(delta)


def test_a_delta_tells_what_it_joins_on_to_and_the_usage_so_far() -> None:
    target = answer()
    feed(target, ids_of("fox"))
    delta = feed(target, ids_of(" dog"))
    assert delta == TextDelta(
        request_id="r",
        num_output_tokens=len(ids_of("fox")),
        text=" dog",
        token_ids=pack_ids(ids_of(" dog")),
        num_prompt_tokens=len(ids_of("hi")),
        num_cached_tokens=16,
    )


def test_an_end_token_counts_but_has_no_text_and_is_no_stop_reason() -> None:
    delta = feed(answer(), [*ids_of("fox"), END], "stop", END)
    assert (delta.text, delta.finish_reason, delta.stop_reason) == ("fox", "stop", None)
    assert list(unpack_ids(delta.token_ids)) == [*ids_of("fox"), END]


def test_a_stop_token_that_the_client_asked_for_is_the_stop_reason() -> None:
    asked = SamplingParams(max_tokens=9, stop_token_ids=(7,))
    delta = feed(answer(sampling=asked), [*ids_of("fox"), 7], "stop", 7)
    assert (delta.text, delta.stop_reason) == ("fox", 7)


def test_an_end_token_is_a_stop_reason_if_the_client_ignores_eos_but_asks_for_it() -> None:
    asked = SamplingParams(max_tokens=9, stop_token_ids=(END,), ignore_eos=True)
    assert feed(answer(sampling=asked), [END], "stop", END).stop_reason == END


def test_a_stop_string_ends_the_answer_and_ids_behind_it_do_not_count() -> None:
    target = answer(TextOptions(stop=(".",)))
    delta = feed(target, ids_of("fox. dog"))
    assert (delta.text, delta.finish_reason, delta.stop_reason) == ("fox", "stop", ".")
    assert target.num_output_tokens == len(ids_of("fox."))


def test_a_stop_string_in_the_last_token_goes_before_length() -> None:
    delta = feed(answer(TextOptions(stop=("dog",))), ids_of("fox dog"), "length")
    assert (delta.finish_reason, delta.stop_reason) == ("stop", "dog")


def test_the_prompt_is_echoed_once_and_as_it_was_written() -> None:
    target = answer(TextOptions(echo=True), prompt=TextPrompt("hi there"))
    assert feed(target, ids_of("fox")).text == "hi therefox"
    assert feed(target, ids_of(" dog")).text == " dog"


def test_a_prompt_of_ids_is_echoed_as_text() -> None:
    target = answer(TextOptions(echo=True), prompt=TokenPrompt(pack_ids(ids_of("hi"))))
    assert feed(target, ids_of("fox")).text == "hifox"


def test_log_probabilities_bear_text_and_exact_bytes() -> None:
    dino = ids_of("🦖")
    logprob = TokenLogprob(dino[-1], -0.5, ((dino[-1], -0.5), (END, -1.5)))
    target = answer()
    delta = target.advance(TokenDelta("r~1", 0, pack_ids(dino[-1:]), (logprob,)))
    last_byte = "🦖".encode()[-1:]
    assert delta.logprobs == (
        TextLogprob(
            "\ufffd",
            last_byte,
            -0.5,
            (("\ufffd", last_byte, -0.5), ("<|im_end|>", b"<|im_end|>", -1.5)),
            dino[-1],
        ),
    )


def test_log_probabilities_behind_a_stop_string_are_dropped() -> None:
    ids = ids_of("a.b")
    target = answer(TextOptions(stop=(".",)))
    logprobs = tuple(TokenLogprob(token_id, -1.0) for token_id in ids)
    delta = target.advance(TokenDelta("r~1", 0, pack_ids(ids), logprobs))
    assert [logprob.token for logprob in delta.logprobs] == ["a", "."]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_replayed_answer_goes_on_as_if_undisturbed(cut: int) -> None:
    """Whatever was held back at the cut, a half dinosaur or half a stop string."""
    options = TextOptions(stop=("fox jumps",))
    ids = ids_of("a 🦖 fox jumped")
    first, second = answer(options), answer(options)
    before = feed(first, ids[:cut])

    assert second.replay(pack_ids(ids[:cut])) is None
    after = feed(second, ids[cut:], "length")

    assert before.text + after.text == "a 🦖 fox jumped"
    assert after.num_output_tokens == cut
    assert second.output_ids == pack_ids(ids)


def test_replayed_ids_that_fill_max_tokens_are_the_end() -> None:
    ids = ids_of("a fox jum")
    target = answer(TextOptions(stop=("jumps",)), SamplingParams(max_tokens=len(ids)))
    last = target.replay(pack_ids(ids))
    assert last is not None
    assert (last.text, last.token_ids, last.finish_reason) == ("jum", b"", "length")
    assert last.num_output_tokens == len(ids)


def test_replayed_ids_that_end_in_an_end_token_are_the_end() -> None:
    last = answer().replay(pack_ids([*ids_of("fox"), END]))
    assert last is not None
    assert (last.text, last.finish_reason, last.stop_reason) == ("", "stop", None)


def test_replayed_ids_that_hold_a_stop_string_are_the_end() -> None:
    last = answer(TextOptions(stop=("fox",))).replay(pack_ids(ids_of("a fox")))
    assert last is not None
    assert (last.text, last.finish_reason, last.stop_reason) == ("", "stop", "fox")


def test_ids_that_are_not_packed_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        answer().advance(TokenDelta("r~1", 0, b"\0\0\0"))
