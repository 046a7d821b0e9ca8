"""One request's output on its way to the client: `TokenDelta` in, `TextDelta` out. Pure.

Holds what is needed to continue it elsewhere: resolved parameters and the ids whose text is out.
"""

from array import array
from collections.abc import Collection

from common.messages import (
    FinishReason,
    SamplingParams,
    TextDelta,
    TextLogprob,
    TextPrompt,
    TokenDelta,
    TokenizeRequest,
    TokenLogprob,
)
from common.token_ids import num_ids, pack_ids, unpack_ids
from services.tokenizer.detokenize import decode
from services.tokenizer.output_text import NewText, OutputText
from services.tokenizer.vocabulary import Vocabulary


class Answer:
    """The output of one request.

    Args:
        vocabulary: pieces of the token ids.
        request: as the gateway sent it.
        sampling: its parameters, resolved.
        eos_ids: tokens that end an output by the model's own choice.
        prompt_ids: packed.

    Raises:
        ValueError: a stop string is empty, or ids are not packed.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        request: TokenizeRequest,
        sampling: SamplingParams,
        eos_ids: Collection[int],
        prompt_ids: bytes,
    ) -> None:
        self.sampling = sampling
        self._request = request
        self._vocabulary = vocabulary
        self._num_prompt_tokens = num_ids(prompt_ids)
        self._eos_ids = eos_ids
        self._echo_text = self._prompt_text(prompt_ids) if request.text.echo else ""
        self._output_ids: array[int] = array("i")
        self._text = OutputText(
            vocabulary, unpack_ids(prompt_ids), request.text, sampling.min_tokens
        )

    @property
    def num_output_tokens(self) -> int:
        return len(self._output_ids)

    @property
    def output_ids(self) -> bytes:
        """Ids whose text is out or held back, packed."""
        return pack_ids(self._output_ids)

    def replay(self, token_ids: bytes) -> TextDelta | None:
        """Stand behind packed ids that the client has the text of already.

        Returns:
            The last delta, if these ids were all of the output; the rest of the text is in it.
        """
        ids = unpack_ids(token_ids)
        self._output_ids.extend(ids)
        ends_in_stop_token = (
            len(ids) > self.sampling.min_tokens and ids[-1] in self.sampling.stop_token_ids
        )
        new = self._text.feed(ids[:-1] if ends_in_stop_token else ids)
        if new.stop is not None:
            return self._delta(NewText("", 0, new.stop), "stop")
        if ends_in_stop_token:
            rest = self._text.finish((), ends_in_stop_token=False)
            return self._delta(rest, "stop", stop_reason=self._stop_reason(ids[-1]))
        if self.sampling.max_tokens is not None and len(ids) >= self.sampling.max_tokens:
            return self._delta(self._text.finish((), ends_in_stop_token=False), "length")
        return None

    def advance(self, delta: TokenDelta) -> TextDelta:
        """Take new ids, which join on exactly.

        Returns:
            Their text; if a stop string ended it, with `finish_reason` "stop" and without the ids
            that came behind it.

        Raises:
            ValueError: the ids are not packed.
        """
        ids = unpack_ids(delta.token_ids)
        if delta.finish_reason is None:
            new = self._text.feed(ids)
        else:
            new = self._text.finish(ids, ends_in_stop_token=delta.stop_token_id is not None)
        num_before = self.num_output_tokens
        self._output_ids.extend(ids[: new.num_tokens])
        return self._delta(
            NewText(self._echo_text + new.text, new.num_tokens, new.stop)
            if num_before == 0
            else new,
            "stop" if new.stop is not None else delta.finish_reason,
            stop_reason=self._stop_reason(delta.stop_token_id),
            logprobs=delta.logprobs,
            num_cached_tokens=delta.num_cached_tokens,
        )

    def _delta(
        self,
        new: NewText,
        finish_reason: FinishReason | None,
        stop_reason: int | None = None,
        logprobs: tuple[TokenLogprob, ...] = (),
        num_cached_tokens: int = 0,
    ) -> TextDelta:
        num_before = self.num_output_tokens - new.num_tokens
        return TextDelta(
            request_id=self._request.request_id,
            num_output_tokens=num_before,
            text=new.text,
            token_ids=pack_ids(self._output_ids[num_before:]),
            logprobs=tuple(map(self._text_logprob, logprobs[: new.num_tokens])),
            finish_reason=finish_reason,
            stop_reason=new.stop if new.stop is not None else stop_reason,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=num_cached_tokens,
        )

    def _stop_reason(self, stop_token_id: int | None) -> int | None:
        """A stop token is a reason worth telling if the client asked for it, not if it is EOS."""
        sampling = self._request.sampling
        is_eos = stop_token_id in self._eos_ids and not sampling.ignore_eos
        is_asked = stop_token_id in sampling.stop_token_ids
        return stop_token_id if is_asked and not is_eos else None

    def _text_logprob(self, token: TokenLogprob) -> TextLogprob:
        token_text, token_bytes = self._spell(token.token_id)
        return TextLogprob(
            token=token_text,
            token_bytes=token_bytes,
            logprob=token.logprob,
            top=tuple((*self._spell(token_id), logprob) for token_id, logprob in token.top),
            token_id=token.token_id,
        )

    def _prompt_text(self, prompt_ids: bytes) -> str:
        """As the client wrote it, if it did."""
        if isinstance(self._request.prompt, TextPrompt):
            return self._request.prompt.text
        return decode(
            self._vocabulary, unpack_ids(prompt_ids), self._request.text.skip_special_tokens
        )

    def _spell(self, token_id: int) -> tuple[str, bytes]:
        piece = self._vocabulary.piece(token_id)
        return piece.decode(errors="replace"), piece
