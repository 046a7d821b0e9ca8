"""One request at the scheduler: its tokens, how far they are computed, and where it stands.

    WAITING ──▶ RUNNING ──▶ FINISHED
       ▲  ▲        │  └───▶ CANCELLED, FAILED   (these three from any of the others)
       │  └────────┤ worker lost, step rejected: all that was in flight is forgotten
       └─ PREEMPTED┘ KV dropped; results in flight still count, then it waits again

There is no prefill and no decode phase: `num_computed_tokens` catches up with the tokens. A
request decodes when only the token that was sampled last is left to compute.
"""

from array import array
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from types import MappingProxyType

from common.errors import InvalidTransition
from common.messages import SamplingParams, TokenLogprob
from services.scheduler.prefix_cache import HashChain

STORY_LENGTH = 24  # entries kept per request


class RequestStatus(Enum):
    WAITING = "waiting"  # in exactly one waiting queue; holds no KV
    RUNNING = "running"  # on one worker, holds KV
    PREEMPTED = "preempted"  # holds no KV; tokens sampled in steps already sent are outstanding
    FINISHED = "finished"  # ended by a stop token or by its length
    CANCELLED = "cancelled"  # its owner does not want it any more
    FAILED = "failed"  # it was told so with RequestFailed


ENDED = frozenset({RequestStatus.FINISHED, RequestStatus.CANCELLED, RequestStatus.FAILED})

TRANSITIONS = MappingProxyType(
    {
        RequestStatus.WAITING: ENDED | {RequestStatus.RUNNING},
        RequestStatus.RUNNING: ENDED | {RequestStatus.PREEMPTED, RequestStatus.WAITING},
        RequestStatus.PREEMPTED: ENDED | {RequestStatus.WAITING},
        RequestStatus.FINISHED: frozenset(),
        RequestStatus.CANCELLED: frozenset(),
        RequestStatus.FAILED: frozenset(),
    }
)


@dataclass(slots=True, eq=False)
class Request:
    """Mutable; changed only by the core and its planner."""

    owner: str  #: instance id of the tokenizer that sent it
    request_id: str  #: unique within the owner
    arrival: int  #: order of arrival at this scheduler, unique
    arrived_at: float  #: seconds on the core's clock
    token_ids: "array[int]"  #: prompt, then the output tokens that are known; only grows
    num_prompt_tokens: int  #: > 0
    sampling: SamplingParams
    stop_token_ids: frozenset[int]  #: any of them ends it, once `min_tokens` are out
    priority: int = 0  #: lower runs first; among equals the rank counts
    tenant: str = ""  #: salt of its hash chains, and who pays for its time
    target_tbt_ms: float = inf  #: time between tokens (P99) that it was promised
    first_token_by: float = inf  #: seconds on the core's clock; when that was promised
    start_tag: float = 0.0  #: virtual time at which it is its turn; see `fair_order`
    rank: float = 0.0  #: virtual time by which it is to start, static
    predicted_s: float = 0.0  #: device time that it was expected to cost when it arrived
    status: RequestStatus = RequestStatus.WAITING
    worker: str | None = None  #: that it waits for or runs on; None: no worker can take it now
    #: its name at the worker, fresh for every start; None: results under older names are ignored
    sequence_id: int | None = None
    #: ids of the KV blocks held, block i for positions [i * block_size, (i + 1) * block_size);
    #: empty unless RUNNING
    block_table: list[int] = field(default_factory=list)
    #: tokens whose KV is written once all steps sent so far have run
    num_computed_tokens: int = 0
    #: tokens sampled by steps in flight, not yet known; at most one per step
    num_pending_tokens: int = 0
    #: tokens of prompt + output at which it ends, on the worker that it runs on
    max_total_tokens: int = 0
    #: blocks that it is predicted to take beyond those that it holds
    growth_blocks: int = 0
    #: prompt tokens that were in the prefix cache at its first start; None before that
    num_cached_tokens: int | None = None
    num_overtakes: int = 0  #: later requests started while this one, ahead of them, did not fit
    num_preemptions: int = 0
    #: output tokens that its owner may be told together; the first one and the last do not wait
    stream_interval: int = 1
    num_told_tokens: int = 0  #: of `token_ids`, those that its owner knows
    untold_logprobs: list[TokenLogprob] = field(default_factory=list)  #: if asked for
    num_worker_losses: int = 0  #: workers lost with a step of this request in flight
    num_rejections: int = 0  #: steps refused because of it
    chains: dict[int, HashChain] = field(default_factory=dict)  #: by block size
    #: the last things that happened to it: (seconds, what); see `InvalidTransition`
    story: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=STORY_LENGTH))

    @property
    def key(self) -> tuple[str, str]:
        return (self.owner, self.request_id)

    @property
    def order(self) -> tuple[int, float, int]:
        """Requests are started, kept and served in ascending order of this; it never changes."""
        return (self.priority, self.rank, self.arrival)

    @property
    def num_output_tokens(self) -> int:
        """Output tokens that are known."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens, known or in flight, whose KV no step sent so far writes."""
        return len(self.token_ids) + self.num_pending_tokens - self.num_computed_tokens

    @property
    def num_untold_tokens(self) -> int:
        """Known tokens that its owner does not know yet."""
        return len(self.token_ids) - self.num_told_tokens

    def is_told(self, num_steps: int) -> bool:
        """Whether its owner is told now what it does not know.

        Args:
            num_steps: that the worker has run. Requests of one worker are told at the same steps,
                so that there are few messages.
        """
        interval = self.stream_interval
        return (
            num_steps % interval == 0
            or self.num_untold_tokens >= interval
            or self.num_told_tokens == self.num_prompt_tokens
        )

    def ended_by(self, token_id: int, num_before: int) -> bool:
        """Whether the token ends the request, coming after `num_before` output tokens."""
        return token_id in self.stop_token_ids and num_before >= self.sampling.min_tokens

    def digests(self, block_size: int, num_tokens: int) -> list[bytes]:
        """Digests of the full blocks within the first `num_tokens` (known) tokens, or more."""
        chain = self.chains.get(block_size)
        if chain is None:
            chain = self.chains[block_size] = HashChain(block_size, self.tenant)
        return chain.extend(self.token_ids, num_tokens)

    def move(self, status: RequestStatus, now: float, why: str) -> None:
        """Change the status.

        Raises:
            InvalidTransition: the two states are not connected; carries the story.
        """
        if status not in TRANSITIONS[self.status]:
            story = "; ".join(f"{time:.6f} {what}" for time, what in self.story)
            raise InvalidTransition(
                f"request {self.request_id} of {self.owner} cannot go from {self.status.value} "
                f"to {status.value} ({why}). Its story: {story or 'empty'}"
            )
        self.story.append((now, f"{status.value}: {why}"))
        self.status = status
