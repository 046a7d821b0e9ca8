"""The text of one request's output: detokenized, and ended by stop strings and stop tokens. Pure.

Feeding the same ids gives the same text, however they are cut into batches. That is what lets
another tokenizer continue a request: it feeds the ids that the client already has the text of, and
stands where the first one stood, held-back characters included.
"""

from collections.abc import Sequence
from typing import NamedTuple

from common.messages import TextOptions
from services.tokenizer.detokenize import Detokenizer
from services.tokenizer.stop_strings import StopBuffer, StopStrings
from services.tokenizer.vocabulary import Vocabulary


class NewText(NamedTuple):
    """What some new ids gave.

    Attributes:
        text: characters that can go out now.
        num_tokens: ids that count; less than were fed if a stop string ended the text among them.
        stop: the stop string that ended the text, if one did.
    """

    text: str
    num_tokens: int
    stop: str | None = None


class OutputText:
    """See the module docstring.

    Args:
        vocabulary: pieces of the token ids.
        prompt_ids: what the output continues.
        options: of the request.
        min_tokens: stop strings do not count in the text of the first so many ids.

    Raises:
        ValueError: a stop string is empty.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt_ids: Sequence[int],
        options: TextOptions,
        min_tokens: int,
    ) -> None:
        self._detokenizer = Detokenizer(vocabulary, prompt_ids, options.skip_special_tokens)
        self._buffer = StopBuffer(StopStrings(options.stop)) if options.stop else None
        self._show_stop = options.include_stop_str_in_output
        self._num_unstoppable = min_tokens

    def feed(self, token_ids: Sequence[int]) -> NewText:
        """Take ids that do not end the output."""
        if self._buffer is None:
            return NewText("".join(map(self._detokenizer.feed, token_ids)), len(token_ids))
        text = ""
        for num_tokens, token_id in enumerate(token_ids, start=1):
            is_unstoppable = self._num_unstoppable > 0
            self._num_unstoppable -= is_unstoppable
            piece = self._detokenizer.feed(token_id)
            if is_unstoppable:
                text += piece
                continue
            out, stop = self._pass(piece)
            text += out
            if stop is not None:
                return NewText(text, num_tokens, stop)
        return NewText(text, len(token_ids))

    def finish(self, token_ids: Sequence[int], *, ends_in_stop_token: bool) -> NewText:
        """Take the last ids; nothing is held back afterwards.

        A stop token's own text is shown under the same option as a stop string.
        """
        is_last_hidden = ends_in_stop_token and not self._show_stop
        new = self.feed(token_ids[:-1] if is_last_hidden else token_ids)
        if new.stop is not None:
            return new
        out, stop = self._pass(self._detokenizer.flush())
        if stop is None and self._buffer is not None:
            out += self._buffer.flush()
        return NewText(new.text + out, len(token_ids), stop)

    def _pass(self, text: str) -> tuple[str, str | None]:
        if self._buffer is None:
            return text, None
        out, stop = self._buffer.feed(text)
        return (out + stop if stop is not None and self._show_stop else out), stop
