"""Token ids → text, one id at a time, in constant time per id. Pure.

The text so far depends on the ids so far and on nothing else: not on how they were batched, and not
on when they came. Only whole characters come out; the bytes of an unfinished one are held until
the next id or `flush`.

At the end the text is what the tokenizer's own `decode` makes of all ids, with one deliberate
difference: in a run of byte-fallback tokens that contains an invalid byte, `decode` turns every
character of the run into U+FFFD, also those that were complete. Here a complete character stays,
because it has been streamed already, and only the bytes that make no character become U+FFFD.
"""

import codecs
from collections.abc import Sequence

from services.tokenizer.vocabulary import Vocabulary

_MAX_CHARACTER_BYTES = 4  # of UTF-8

_REPLACE_EACH_BYTE = "splitfuse_replace_each_byte"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


# Byte-level tokenizers write one U+FFFD per invalid sequence ("replace"), byte fallback one per
# byte.
codecs.register_error(_REPLACE_EACH_BYTE, _replace_each_byte)


class Detokenizer:
    """The text of one sequence's output.

    The output continues the prompt: a space that the tokenizer drops at the start of a text is kept
    where the prompt already has text, and a character may begin in the prompt.

    Args:
        vocabulary: pieces of the token ids.
        prompt_ids: ids in front of the output; their text does not come out.
        skip_special_tokens: leave special tokens out of the text.
    """

    def __init__(
        self, vocabulary: Vocabulary, prompt_ids: Sequence[int], skip_special_tokens: bool
    ) -> None:
        rules = vocabulary.rules
        self._vocabulary = vocabulary
        self._hidden_ids = vocabulary.special_ids if skip_special_tokens else frozenset[int]()
        self._is_first = True  # no visible token yet
        self._num_strippable = rules.max_strip
        errors = _REPLACE_EACH_BYTE if rules.byte_fallback else "replace"
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors)
        self._skip_prompt(prompt_ids)

    def feed(self, token_id: int) -> str:
        """The whole characters that this id completes; often none."""
        if token_id in self._hidden_ids:
            return ""
        piece = self._vocabulary.piece(token_id)
        if not piece:
            return ""  # no token has this id
        if self._is_first:
            self._is_first = False
            piece = self._vocabulary.first_piece(token_id)
        text = self._utf8.decode(piece)
        return self._strip(text) if self._num_strippable and text else text

    def flush(self) -> str:
        """What is left when no id follows: U+FFFD for bytes that make no character."""
        return self._strip(self._utf8.decode(b"", final=True))

    def _strip(self, text: str) -> str:
        char = self._vocabulary.rules.strip_char
        while self._num_strippable and text.startswith(char):
            text = text[1:]
            self._num_strippable -= 1
        if text:
            self._num_strippable = 0
        return text

    def _skip_prompt(self, prompt_ids: Sequence[int]) -> None:
        """Stand behind the prompt without decoding all of it.

        UTF-8 synchronizes itself: behind the prompt's last four bytes the decoder is in the same
        state as behind the whole prompt.
        """
        num_bytes = 0
        tail: list[bytes] = []
        for token_id in reversed(prompt_ids):
            if num_bytes >= _MAX_CHARACTER_BYTES:
                break
            piece = self._vocabulary.piece(token_id)
            if piece and token_id not in self._hidden_ids:
                self._is_first = False
                tail.append(piece)
                num_bytes += len(piece)
        if self._utf8.decode(b"".join(reversed(tail))):
            self._num_strippable = 0


def decode(vocabulary: Vocabulary, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
    """The text of a whole sequence."""
    detokenizer = Detokenizer(vocabulary, (), skip_special_tokens)
    return "".join([*map(detokenizer.feed, token_ids), detokenizer.flush()])
