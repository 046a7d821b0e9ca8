"""OpenAI's response objects, whole and in chunks, made from the pieces that the mesh delivers.

One `Tally` per HTTP request counts tokens; a `ChunkWriter` turns pieces into stream chunks and
`whole_answer` turns the complete pieces of all choices into the one object of an answer that is
not streamed. Choices are numbered prompt by prompt, n of each.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from common.messages import TextLogprob
from common.token_ids import num_ids, unpack_ids
from services.gateway.openai_api import Generation

# OpenAI's JSON has no -inf; this is what clients of other engines expect in its place.
MIN_LOGPROB = -9999.0


@dataclass(slots=True)
class Piece:
    """What the mesh made of one choice since the piece before."""

    index: int  # of the choice
    text: str
    token_ids: bytes
    logprobs: Sequence[TextLogprob] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0


# ── objects on the wire ──────────────────────────────────────────────────────────────────────────


class CachedTokens(msgspec.Struct):
    cached_tokens: int


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ChatLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct):
    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class ChatMessage(msgspec.Struct):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatDelta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    token_ids: list[int] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


Choice: TypeAlias = ChatChoice | ChatChunkChoice | CompletionChoice


class Answer(msgspec.Struct):
    """A chat completion, a text completion, or a chunk of one."""

    id: str
    object: str
    created: int
    model: str
    choices: Sequence[Choice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: None = None


@dataclass(frozen=True, slots=True)
class Heading:
    """What all chunks of an answer share."""

    id: str
    created: int  # seconds since the epoch
    model: str


# ── counting ─────────────────────────────────────────────────────────────────────────────────────


class Tally:
    """Tokens of one answer. A prompt counts once, however many choices continue it."""

    def __init__(self, num_prompts: int, n: int) -> None:
        self._n = n
        self._prompt_tokens = [0] * num_prompts
        self._cached_tokens: list[int | None] = [None] * num_prompts  # None: not known yet
        self.completion_tokens = 0

    def add(self, piece: Piece) -> None:
        prompt, choice = divmod(piece.index, self._n)
        # The first choice's first count holds: the others find its prompt cached, and a request
        # that was re-sent finds its own.
        if choice == 0 and self._cached_tokens[prompt] is None:
            self._cached_tokens[prompt] = piece.num_cached_tokens
        self._prompt_tokens[prompt] = self._prompt_tokens[prompt] or piece.num_prompt_tokens
        self.completion_tokens += num_ids(piece.token_ids)

    @property
    def prompt_tokens(self) -> int:
        return sum(self._prompt_tokens)

    def usage(self) -> Usage:
        prompt_tokens = self.prompt_tokens
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=prompt_tokens + self.completion_tokens,
            prompt_tokens_details=CachedTokens(sum(n or 0 for n in self._cached_tokens)),
        )


# ── log probabilities ────────────────────────────────────────────────────────────────────────────


def _shown_ids(generation: Generation, piece: Piece) -> list[int] | UnsetType:
    return list(unpack_ids(piece.token_ids)) if generation.return_token_ids else UNSET


def _clamp(logprob: float) -> float:
    return max(logprob, MIN_LOGPROB)


def chat_logprobs(logprobs: Sequence[TextLogprob]) -> ChatLogprobs | None:
    """None if there are none, as when they were not asked for."""
    if not logprobs:
        return None
    return ChatLogprobs(
        [
            ChatLogprob(
                token=lp.token,
                logprob=_clamp(lp.logprob),
                bytes=list(lp.token_bytes),
                top_logprobs=[
                    TopLogprob(token, _clamp(logprob), list(token_bytes))
                    for token, token_bytes, logprob in lp.top
                ],
            )
            for lp in logprobs
        ]
    )


def completion_logprobs(
    logprobs: Sequence[TextLogprob], text_offset: int
) -> CompletionLogprobs | None:
    """None if there are none. `text_offset` counts the characters of the tokens before these."""
    if not logprobs:
        return None
    offsets = []
    for lp in logprobs:
        offsets.append(text_offset)
        text_offset += len(lp.token)
    return CompletionLogprobs(
        text_offset=offsets,
        token_logprobs=[_clamp(lp.logprob) for lp in logprobs],
        tokens=[lp.token for lp in logprobs],
        top_logprobs=[
            {lp.token: _clamp(lp.logprob)} | {token: _clamp(p) for token, _, p in lp.top}
            for lp in logprobs
        ],
    )


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def whole_answer(
    generation: Generation, heading: Heading, tally: Tally, pieces: Sequence[Piece]
) -> Answer:
    """The answer that is not streamed; `pieces` holds one complete piece per choice, in order."""
    for piece in pieces:
        tally.add(piece)
    choices: Iterable[Choice]
    if generation.kind == "chat":
        choices = (
            ChatChoice(
                piece.index,
                ChatMessage(piece.text),
                chat_logprobs(piece.logprobs),
                piece.finish_reason,
                piece.stop_reason,
                _shown_ids(generation, piece),
            )
            for piece in pieces
        )
    else:
        choices = (
            CompletionChoice(
                piece.index,
                piece.text,
                completion_logprobs(piece.logprobs, 0),
                piece.finish_reason,
                piece.stop_reason,
                _shown_ids(generation, piece),
            )
            for piece in pieces
        )
    return Answer(
        id=heading.id,
        object="chat.completion" if generation.kind == "chat" else "text_completion",
        created=heading.created,
        model=heading.model,
        choices=list(choices),
        usage=tally.usage(),
    )


class ChunkWriter:
    """Turns the pieces of one streamed answer into its chunks."""

    def __init__(self, generation: Generation, heading: Heading, tally: Tally) -> None:
        self._generation = generation
        self._heading = heading
        self._tally = tally
        self._is_chat = generation.kind == "chat"
        self._object = "chat.completion.chunk" if self._is_chat else "text_completion"
        num_choices = len(generation.prompts) * generation.n
        self._started = [False] * num_choices
        self._text_offsets = [0] * num_choices

    def chunks(self, piece: Piece) -> list[Answer]:
        """Chunks that carry the piece; none if it brings nothing that the client can see."""
        self._tally.add(piece)
        chunks = []
        if self._is_chat and not self._started[piece.index]:
            self._started[piece.index] = True
            chunks.append(self._chunk([ChatChunkChoice(piece.index, ChatDelta("assistant", ""))]))
        if self._is_visible(piece):
            chunks.append(self._chunk([self._choice(piece)]))
        return chunks

    def _is_visible(self, piece: Piece) -> bool:
        generation = self._generation
        return bool(
            piece.text
            or piece.logprobs
            or piece.finish_reason
            or generation.continuous_usage
            or (generation.return_token_ids and piece.token_ids)
        )

    def last_chunks(self) -> list[Answer]:
        """What comes after all choices are finished: usage, if it was asked for."""
        if not self._generation.include_usage:
            return []
        return [self._chunk([], self._tally.usage())]

    def _choice(self, piece: Piece) -> Choice:
        stop_reason = piece.stop_reason if piece.finish_reason else UNSET
        if self._is_chat:
            # A closing piece without text has an empty delta.
            delta = ChatDelta(content=piece.text or (None if piece.finish_reason else ""))
            return ChatChunkChoice(
                piece.index,
                delta,
                chat_logprobs(piece.logprobs),
                piece.finish_reason,
                stop_reason,
                _shown_ids(self._generation, piece),
            )
        offset = self._text_offsets[piece.index]
        self._text_offsets[piece.index] += sum(len(lp.token) for lp in piece.logprobs)
        return CompletionChoice(
            piece.index,
            piece.text,
            completion_logprobs(piece.logprobs, offset),
            piece.finish_reason,
            stop_reason,
            _shown_ids(self._generation, piece),
        )

    def _chunk(self, choices: Sequence[Choice], usage: Usage | None = None) -> Answer:
        shown: Usage | UnsetType | None = usage
        if usage is None and self._generation.continuous_usage:
            shown = self._tally.usage()
        elif usage is None and not self._generation.include_usage:
            shown = UNSET
        heading = self._heading
        return Answer(heading.id, self._object, heading.created, heading.model, choices, shown)
