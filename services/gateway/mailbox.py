"""Between the mesh, which never waits, and one client, who may read slowly.

What arrives while the client does not read is kept per choice and leaves as one piece, so a slow
reader costs memory bounded by its own output and delays nobody else.
"""

import asyncio

from common.errors import RequestError
from common.messages import TextDelta
from services.gateway.answers import Piece


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


class Mailbox:
    """What the mesh made for one HTTP request and the client has not taken yet.

    Args:
        num_choices: sequences that make up the answer.
    """

    def __init__(self, num_choices: int) -> None:
        self._num_unfinished = num_choices
        self._pending: dict[int, list[TextDelta]] = {}
        self._error: RequestError | None = None
        self._client_gone = False
        self._any_taken = False
        self._news = asyncio.Event()
        self._over = asyncio.Event()

    @property
    def is_empty_for_good(self) -> bool:
        """Whether every choice is finished and taken."""
        return self._num_unfinished == 0 and not self._pending

    @property
    def has_failed(self) -> bool:
        return self._error is not None

    def put(self, index: int, delta: TextDelta) -> None:
        """Add to a choice; a finish reason in `delta` ends it."""
        self._pending.setdefault(index, []).append(delta)
        self._news.set()
        if delta.finish_reason is not None:
            self._num_unfinished -= 1
            if self._num_unfinished == 0:
                self._over.set()

    def fail(self, error: RequestError) -> None:
        """The answer ends here. The first error is the one that counts."""
        self._error = self._error or error
        self._news.set()
        self._over.set()

    def leave(self) -> None:
        """The client is gone."""
        self._client_gone = True
        self._news.set()
        self._over.set()

    async def take(self) -> list[Piece]:
        """Everything new, at least one piece; waits until there is something.

        Raises:
            ClientGone: nobody is left to read.
            RequestError: the answer failed; what came before the failure was taken, unless
                nothing was taken at all: then the failure is the whole answer.
        """
        await self._news.wait()
        self._check(flushing=self._any_taken and bool(self._pending))
        self._any_taken = True
        pieces = self._drain()
        if self._error is None:
            self._news.clear()
        return pieces

    async def take_whole(self) -> list[Piece]:
        """One complete piece per choice, in order, once all are finished.

        Raises:
            ClientGone, RequestError: as `take`.
        """
        await self._over.wait()
        self._check(flushing=False)
        return sorted(self._drain(), key=lambda piece: piece.index)

    def _check(self, flushing: bool) -> None:
        if self._client_gone:
            raise ClientGone
        if self._error is not None and not flushing:
            raise self._error

    def _drain(self) -> list[Piece]:
        pieces = [_join(index, deltas) for index, deltas in self._pending.items()]
        self._pending.clear()
        return pieces


def _join(index: int, deltas: list[TextDelta]) -> Piece:
    """Deltas of one choice that follow each other, as one piece."""
    last = deltas[-1]
    if len(deltas) == 1:  # a client that keeps up, which is the rule: nothing to join
        return Piece(
            index,
            last.text,
            last.token_ids,
            last.logprobs,
            last.finish_reason,
            last.stop_reason,
            last.num_prompt_tokens,
            last.num_cached_tokens,
        )
    return Piece(
        index=index,
        text="".join([delta.text for delta in deltas]),
        token_ids=b"".join([delta.token_ids for delta in deltas]),
        logprobs=[logprob for delta in deltas for logprob in delta.logprobs],
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        num_prompt_tokens=last.num_prompt_tokens,
        num_cached_tokens=deltas[0].num_cached_tokens,
    )
