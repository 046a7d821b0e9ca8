"""The oracle is the tokenizers library's own decode of all ids."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.tokenizer.detokenize import Detokenizer, decode
from services.tokenizer.vocabulary import Vocabulary
from tests.unit.tokenizer import models

KINDS = list(models.KINDS)
MULTILINGUAL = st.lists(
    st.sampled_from([word for text in models.TEXTS for word in (text, *text.split(), *text)])
    | st.text(max_size=6)
).map("".join)


def pieces(vocabulary: Vocabulary, ids: list[int], skip_special_tokens: bool = False) -> list[str]:
    detokenizer = Detokenizer(vocabulary, (), skip_special_tokens)
    return [*map(detokenizer.feed, ids), detokenizer.flush()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", models.TEXTS)
def test_the_pieces_of_a_text_make_the_whole_text(kind: str, text: str) -> None:
    tokenizer = models.KINDS[kind]()
    ids = tokenizer.encode(text).ids

    streamed = pieces(models.encoder(kind).vocabulary, ids, skip_special_tokens=True)

    assert "".join(streamed) == tokenizer.decode(ids)
    assert len(ids) > 10


@settings(max_examples=150, deadline=None)
@given(text=MULTILINGUAL, kind=st.sampled_from(KINDS), skip=st.booleans())
def test_any_text_streams_to_what_decode_makes_of_it(text: str, kind: str, skip: bool) -> None:
    tokenizer = models.KINDS[kind]()
    ids = tokenizer.encode(text).ids
    vocabulary = models.encoder(kind).vocabulary
    assert decode(vocabulary, ids, skip) == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=300, deadline=None)
@given(
    ids=st.lists(st.integers(0, 430), max_size=40),
    kind=st.sampled_from(["byte level", "metaspace"]),
    skip=st.booleans(),
)
def test_random_ids_stream_to_what_decode_makes_of_them(
    ids: list[int], kind: str, skip: bool
) -> None:
    expected = models.KINDS[kind]().decode(ids, skip_special_tokens=skip)
    assert decode(models.encoder(kind).vocabulary, ids, skip) == expected


@settings(max_examples=300, deadline=None)
@given(
    ids=st.lists(st.integers(0, 2) | st.integers(259, 419) | st.integers(3 + 0x80, 3 + 0xBF)),
    skip=st.booleans(),
)
def test_every_byte_that_makes_no_character_becomes_one_replacement_as_in_decode(
    ids: list[int], skip: bool
) -> None:
    """Byte tokens are ids 3 to 258; here all of them are continuation bytes, so none is valid."""
    expected = models.byte_fallback().decode(ids, skip_special_tokens=skip)
    assert decode(models.encoder("byte fallback").vocabulary, ids, skip) == expected


def test_a_streamed_character_survives_an_invalid_byte_behind_it() -> None:
    euro = [3 + byte for byte in "€".encode()]
    invalid = 3 + 0xFF

    text = decode(models.encoder("byte fallback").vocabulary, [*euro, invalid], False)

    assert text == "€\ufffd"
    assert models.byte_fallback().decode([*euro, invalid]) == "\ufffd" * 4  # takes the euro back


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_a_character_of_several_tokens_comes_out_with_its_last_token(kind: str) -> None:
    tokenizer = models.KINDS[kind]()
    ids = tokenizer.encode("🦖", add_special_tokens=False).ids
    assert len(ids) >= 3  # no merges: the dinosaur is not in the training text

    streamed = pieces(models.encoder(kind).vocabulary, ids)

    assert [piece for piece in streamed if piece.strip()] == ["🦖"]
    assert streamed[-2].endswith("🦖")


@pytest.mark.parametrize(("kind", "replacements"), [("byte level", 1), ("byte fallback", 3)])
def test_an_unfinished_character_is_flushed_as_the_tokenizer_does(
    kind: str, replacements: int
) -> None:
    tokenizer = models.KINDS[kind]()
    ids = tokenizer.encode("🦖", add_special_tokens=False).ids[:-1]

    streamed = pieces(models.encoder(kind).vocabulary, ids)

    assert "".join(streamed) == tokenizer.decode(ids)
    assert streamed[-1] == "\ufffd" * replacements


def test_special_tokens_are_shown_only_if_asked_for() -> None:
    vocabulary = models.encoder("byte level").vocabulary
    ids = models.byte_level().encode("fox<|im_end|>dog<tool>").ids
    assert decode(vocabulary, ids, skip_special_tokens=True) == "foxdog<tool>"
    assert decode(vocabulary, ids, skip_special_tokens=False) == "fox<|im_end|>dog<tool>"


def test_ids_without_a_token_add_nothing() -> None:
    vocabulary = models.encoder("byte level").vocabulary
    fox = models.byte_level().encode("fox").ids
    assert decode(vocabulary, [499, *fox, -1, 2**31 - 1], skip_special_tokens=False) == "fox"


def test_output_keeps_the_space_that_separates_it_from_the_prompt() -> None:
    tokenizer = models.byte_fallback()
    vocabulary = models.encoder("byte fallback").vocabulary
    prompt = tokenizer.encode("quick").ids
    output = tokenizer.encode("brown", add_special_tokens=False).ids

    behind_prompt = Detokenizer(vocabulary, prompt, skip_special_tokens=True)
    behind_bos = Detokenizer(vocabulary, prompt[:1], skip_special_tokens=True)

    assert "".join(map(behind_prompt.feed, output)) == " brown"
    assert "".join(map(behind_bos.feed, output)) == "brown"


@settings(max_examples=150, deadline=None)
@given(
    ids=st.lists(st.integers(0, 419), min_size=1, max_size=12),
    cut=st.integers(0, 12),
    kind=st.sampled_from(["byte level", "byte fallback"]),
)
def test_a_character_may_begin_in_the_prompt(ids: list[int], cut: int, kind: str) -> None:
    """What comes out behind a prompt is what comes out there when everything is streamed."""
    vocabulary = models.encoder(kind).vocabulary
    prompt, output = ids[:cut], ids[cut:]
    detokenizer = Detokenizer(vocabulary, prompt, skip_special_tokens=True)

    streamed = [*map(detokenizer.feed, output), detokenizer.flush()]

    assert streamed == pieces(vocabulary, ids, skip_special_tokens=True)[len(prompt) :]
