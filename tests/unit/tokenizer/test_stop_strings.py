import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.tokenizer.stop_strings import StopBuffer, StopStrings


def feed_all(stop: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    """What comes out piece by piece, and the stop string that ended it."""
    buffer = StopBuffer(StopStrings(stop))
    out = []
    for piece in pieces:
        text, match = buffer.feed(piece)
        out.append(text)
        if match is not None:
            return out, match
    return [*out, buffer.flush()], None


def test_a_stop_string_is_found_across_pieces_and_its_text_never_comes_out() -> None:
    out, match = feed_all(["</answer>"], ["42</", "ans", "wer", "> and more"])
    assert (out, match) == (["42", "", "", ""], "</answer>")


def test_only_text_that_could_become_a_stop_string_is_held_back() -> None:
    out, match = feed_all(["STOP"], ["a S", "T", "A ST", "OR"])
    assert (out, match) == (["a ", "", "STA ", "STOR", ""], None)


def test_what_is_held_comes_out_when_the_text_ends() -> None:
    assert feed_all(["\n\n"], ["line\n"]) == (["line", "\n"], None)


def test_the_stop_string_that_ends_first_wins_though_another_began_earlier() -> None:
    assert feed_all(["abcd", "bc"], ["xabcd"]) == (["xa"], "bc")


def test_of_stop_strings_that_end_together_the_longest_wins() -> None:
    assert feed_all(["c", "abc", "bc"], ["xabc"]) == (["x"], "abc")


def test_a_failed_match_may_hide_the_beginning_of_another() -> None:
    assert feed_all(["aab"], ["aa", "ab"]) == (["", "a"], "aab")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="a stop string is empty"):
        StopStrings(["x", ""])


def first_match(stop: list[str], text: str) -> tuple[str, str | None]:
    """The definition, without cleverness: the earliest end, then the longest."""
    for end in range(1, len(text) + 1):
        ending = [s for s in stop if text[:end].endswith(s)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


LETTERS = st.text("ab", max_size=30)


@settings(deadline=None)
@given(
    stop=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4),
    pieces=st.lists(LETTERS, max_size=8),
)
def test_the_result_does_not_depend_on_how_the_text_is_cut(
    stop: list[str], pieces: list[str]
) -> None:
    out, match = feed_all(stop, pieces)
    assert ("".join(out), match) == first_match(stop, "".join(pieces))


@settings(deadline=None)
@given(stop=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4), text=LETTERS)
def test_no_character_is_held_back_without_need(stop: list[str], text: str) -> None:
    buffer = StopBuffer(StopStrings(stop))
    out, match = buffer.feed(text)
    if match is None:
        held = text[len(out) :]
        candidates = [
            text[i:] for i in range(len(text)) if any(s.startswith(text[i:]) for s in stop)
        ]
        assert held == max(candidates, key=len, default="")
