import random

import pytest

from splitfuse.bench.prompts import IdPrompts, TextPrompts
from tests.unit.splitfuse.bench.word_tokenizer import word_tokenizer


@pytest.mark.parametrize("num_tokens", [1, 2, 700])
def test_ids_are_as_many_as_asked_for_and_of_the_vocabulary(num_tokens: int) -> None:
    ids = IdPrompts(vocab_size=50).make(num_tokens, random.Random(1))

    assert len(ids) == num_tokens
    assert all(0 <= token < 50 for token in ids)


@pytest.mark.parametrize("num_tokens", [2, 3, 700])
def test_a_text_has_as_many_tokens_as_asked_for_the_special_ones_included(num_tokens: int) -> None:
    tokenizer = word_tokenizer(300)

    text = TextPrompts(tokenizer).make(num_tokens, random.Random(2))

    ids = tokenizer.encode(text).ids
    assert len(ids) == num_tokens
    assert ids[0] == 0  # the special one
    assert 1 not in ids[1:]  # no word is unknown


def test_no_two_prompts_begin_alike() -> None:
    prompts = IdPrompts(vocab_size=1000)
    draw = random.Random(3)

    beginnings = {tuple(prompts.make(16, draw)) for _ in range(200)}

    assert len(beginnings) == 200


def test_a_tokenizer_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="knows 0 words of one token only"):
        TextPrompts(word_tokenizer(300, prefix="x"))
