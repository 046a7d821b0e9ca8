from hypothesis import given, settings
from hypothesis import strategies as st

from common.messages import TextOptions
from services.tokenizer.output_text import NewText, OutputText
from tests.unit.tokenizer import models

END = 2  # <|im_end|>


def ids_of(text: str) -> list[int]:
    return models.byte_level().encode(text).ids


def output(options: TextOptions, min_tokens: int = 0) -> OutputText:
    return OutputText(models.encoder("byte level").vocabulary, (), options, min_tokens)


def test_ids_behind_the_stop_string_do_not_count() -> None:
    ids = ids_of("one. two. three")
    num_counting = next(n for n in range(len(ids)) if "two" in models.byte_level().decode(ids[:n]))

    new = output(TextOptions(stop=("two",))).feed(ids)

    assert new == NewText("one. ", num_counting, "two")


def test_the_stop_string_is_shown_if_asked_for() -> None:
    options = TextOptions(stop=("two",), include_stop_str_in_output=True)
    assert output(options).feed(ids_of("one. two. three")).text == "one. two"


def test_a_stop_string_among_the_first_min_tokens_is_plain_text() -> None:
    ids = ids_of("fox dog fox dog")
    num_first_fox = len(ids_of("fox"))

    new = output(TextOptions(stop=("fox",)), min_tokens=num_first_fox).feed(ids)

    assert (new.text, new.stop) == ("fox dog ", "fox")


def test_the_text_of_a_stop_token_is_hidden_though_special_tokens_are_shown() -> None:
    options = TextOptions(skip_special_tokens=False)
    new = output(options).finish([*ids_of("bye"), END], ends_in_stop_token=True)
    assert new == NewText("bye", len(ids_of("bye")) + 1)


def test_the_text_of_a_stop_token_is_shown_under_the_same_option_as_a_stop_string() -> None:
    options = TextOptions(skip_special_tokens=False, include_stop_str_in_output=True)
    new = output(options).finish([*ids_of("bye"), END], ends_in_stop_token=True)
    assert new.text == "bye<|im_end|>"


def test_held_text_and_half_characters_come_out_at_the_end() -> None:
    text = output(TextOptions(stop=("over and out",)))
    first = text.feed(ids_of("over and"))
    last = text.finish(ids_of("🦖")[:-1], ends_in_stop_token=False)
    assert (first.text, last.text) == ("", "over and\ufffd")


@settings(max_examples=100, deadline=None)
@given(
    ids=st.lists(st.integers(0, 419), min_size=1, max_size=30),
    cuts=st.sets(st.integers(1, 29)),
    stop=st.lists(st.sampled_from(["a", "e q", "\ufffd", "th", "fox"]), max_size=2),
    min_tokens=st.integers(0, 5),
)
def test_text_so_far_depends_on_the_ids_alone(
    ids: list[int], cuts: set[int], stop: list[str], min_tokens: int
) -> None:
    options = TextOptions(stop=tuple(stop))
    one_by_one, batched = output(options, min_tokens), output(options, min_tokens)
    text, num_tokens = "", 0
    for token_id in ids:
        new = one_by_one.feed([token_id])
        text, num_tokens = text + new.text, num_tokens + new.num_tokens
        if new.stop is not None:
            break

    batched_text, num_batched, start = "", 0, 0
    for end in [*sorted(cut for cut in cuts if cut < len(ids)), len(ids)]:
        new = batched.feed(ids[start:end])
        batched_text, num_batched, start = (
            batched_text + new.text,
            num_batched + new.num_tokens,
            end,
        )
        if new.stop is not None:
            break

    assert (batched_text, num_batched) == (text, num_tokens)
