"""Prompts of a given number of tokens that share no beginning, so that no prefix cache helps."""

import re
from typing import Protocol

from tokenizers import Tokenizer

from common.workload.draw import Draw

DEFAULT_VOCAB_SIZE = 10_000  # ids below it; nearly every model has more
MIN_WORDS = 100
_WORD = re.compile(r" [a-z]+")


class Prompts(Protocol):
    """Makes prompts as an API takes them."""

    def make(self, num_tokens: int, draw: Draw) -> str | list[int]:
        """A random prompt of `num_tokens` tokens, >= 1."""
        ...


class IdPrompts:
    """Token ids, for servers that take them: exact, and nobody has to tokenize."""

    def __init__(self, vocab_size: int = DEFAULT_VOCAB_SIZE) -> None:
        self._vocab_size = vocab_size

    def make(self, num_tokens: int, draw: Draw) -> list[int]:
        return [draw.randint(0, self._vocab_size - 1) for _ in range(num_tokens)]


class TextPrompts:
    """Text of as many tokens, the special ones included that the tokenizer adds.

    It is made of words that are one token each, and then cut or filled until the count is right.

    Raises:
        ValueError: the vocabulary has hardly a word.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._words = _words(tokenizer)
        if len(self._words) < MIN_WORDS:
            raise ValueError(f"the tokenizer knows {len(self._words)} words of one token only")

    def make(self, num_tokens: int, draw: Draw) -> str:
        words: list[str] = []
        missing = num_tokens
        while missing > 0:
            words += (self._words[draw.randint(0, len(self._words) - 1)] for _ in range(missing))
            missing = num_tokens - self._count(words)
        while len(words) > 1 and self._count(words) > num_tokens:
            words.pop()
        return "".join(words)

    def _count(self, words: list[str]) -> int:
        return len(self._tokenizer.encode("".join(words)).ids)


def _words(tokenizer: Tokenizer) -> list[str]:
    """Each is one token wherever it stands behind another."""
    doubled = (tokenizer.decode([i, i]) for i in range(tokenizer.get_vocab_size()))
    # "foo foo" or " foo foo": some tokenizers drop the space that a text begins with
    seconds = (text[len(text) // 2 :] for text in doubled)
    return sorted({word for word in seconds if _WORD.fullmatch(word)})
