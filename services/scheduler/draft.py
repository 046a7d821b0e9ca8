"""A step in the making: what is in it so far, and what it still has room for."""

from collections import defaultdict
from itertools import islice
from math import inf

from common.messages import Chunk, NewSequence, StepPlan
from common.token_ids import pack_ids
from services.scheduler.cost_model import StepShape
from services.scheduler.pass_budget import PassLimit
from services.scheduler.replicas import Replica, Step
from services.scheduler.request import Request
from services.scheduler.work import EMPTY, chunk_shape, plus


class Draft:
    """The next step of one worker; adding to it also changes requests and the worker's blocks.

    Args:
        step_id: of the step.
        replica: the worker.
    """

    __slots__ = (
        "_chunks",
        "_decodes",
        "_new_sequences",
        "_num_attended_tokens",
        "_num_context_tokens",
        "_out_of_time",
        "_prompts",
        "_replica",
        "limit",
        "num_prompt_tokens",
        "num_tokens",
        "queue_times_s",
        "step",
    )

    def __init__(self, step_id: int, replica: Replica) -> None:
        self.step = Step(step_id)
        self.limit = PassLimit(replica.budget.tokens, inf)  #: what may be in it in the end
        self.num_tokens = 0
        self.num_prompt_tokens = 0
        self.queue_times_s: list[float] = []  #: of requests that start for the first time with it
        self._replica = replica
        self._chunks: list[Chunk] = []
        self._decodes: list[Request] = []
        self._prompts: list[tuple[Request, StepShape]] = []  #: with what is in the step of each
        self._new_sequences: list[NewSequence] = []
        self._num_context_tokens = 0
        self._num_attended_tokens = 0
        self._out_of_time = False  #: a prompt got less than it wanted for the limit's milliseconds

    @property
    def is_empty(self) -> bool:
        return not self._chunks

    @property
    def is_full(self) -> bool:
        """Whether the limit takes no further prompt tokens."""
        return self._out_of_time or self.num_tokens >= self.limit.tokens

    def shape(self) -> StepShape:
        """What the chunks so far amount to."""
        return StepShape(
            self.num_tokens,
            self._num_context_tokens,
            self._num_attended_tokens,
            len(self._chunks),
            len(self.step.samplers),
        )

    def shapes_by_tenant(self) -> dict[str, StepShape]:
        """What each tenant has in the step."""
        shapes: dict[str, StepShape] = {}
        for request, shape in self._prompts:
            shapes[request.tenant] = plus(shapes.get(request.tenant, EMPTY), shape)
        sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for request in self._decodes:
            decodes = sums[request.tenant]
            decodes[0] += 1
            decodes[1] += request.num_computed_tokens
        for tenant, (number, context) in sums.items():
            shape = StepShape(number, context, context, number, number)
            shapes[tenant] = plus(shapes.get(tenant, EMPTY), shape)
        return shapes

    def plan(self) -> StepPlan:
        """The step as its worker gets it."""
        step = self.step
        return StepPlan(step.step_id, tuple(self._chunks), tuple(self._new_sequences), step.dropped)

    def room(self, start: int, num_uncomputed: int, at_least: int) -> int:
        """How many tokens of a prompt may be added, <= 0 if none.

        Args:
            start: tokens of it that are computed.
            num_uncomputed: tokens of it that are left, > 0.
            at_least: if the limit has the tokens, but not the time, so many even so.
        """
        room = self.limit.tokens - self.num_tokens
        if room <= 0 or self.limit.ms == inf:
            return room
        wanted = min(room, num_uncomputed)
        budget = self._replica.budget
        within = budget.tokens_within(self.shape(), start, wanted, self.limit.ms)
        self._out_of_time = within < wanted
        return max(within, min(at_least, wanted))

    def add_decodes(self, wanted: int) -> None:
        """Add the first decodes, one token each; every step pays this loop for every stream."""
        replica, samplers, chunks = self._replica, self.step.samplers, self._chunks
        decodes = self._decodes
        block_size = replica.block_size
        num_context_tokens, limit_ms = 0, inf
        for sequence_id, request in islice(replica.decodes.items(), wanted):
            computed = request.num_computed_tokens
            if computed + 1 >= request.max_total_tokens:
                continue  # its last token is in flight
            num_context_tokens += computed + 1
            new_blocks = b"" if computed % block_size else pack_ids(replica.take_blocks(request, 1))
            chunks.append(Chunk(sequence_id, computed, 1, new_blocks, True))
            samplers[sequence_id] = request
            decodes.append(request)
            request.num_computed_tokens = computed + 1
            request.num_pending_tokens += 1
            if request.target_tbt_ms < limit_ms:
                limit_ms = request.target_tbt_ms
        self.step.limit_ms = limit_ms
        self.num_tokens += len(decodes)
        self._num_context_tokens += num_context_tokens
        self._num_attended_tokens += num_context_tokens

    def introduce(self, sequence_id: int, request: Request) -> None:
        """Tell the worker of a sequence that it does not know; its chunk comes next."""
        self._new_sequences.append(
            NewSequence(
                sequence_id,
                pack_ids(request.token_ids),
                request.num_prompt_tokens,
                request.num_computed_tokens,
                pack_ids(request.block_table),
                request.sampling,
            )
        )

    def add_prompt_chunk(self, request: Request, num_tokens: int) -> None:
        """Add the next tokens of a running request, all of them known."""
        replica, sequence_id = self._replica, request.sequence_id
        assert sequence_id is not None  # noqa: S101 - a running request has one
        start = request.num_computed_tokens
        end = start + num_tokens
        num_blocks = -(-end // replica.block_size) - len(request.block_table)
        new_blocks = pack_ids(replica.take_blocks(request, num_blocks))
        self.step.registered += replica.register(request, start, end)
        request.num_computed_tokens = end
        sample = end == len(request.token_ids)
        if sample:
            request.num_pending_tokens += 1
            replica.decodes[sequence_id] = replica.prefills.pop(sequence_id)
            self.step.samplers[sequence_id] = request
        else:
            self.step.partial.append((sequence_id, request))
        self._chunks.append(Chunk(sequence_id, start, num_tokens, new_blocks, sample))
        shape = chunk_shape(start, num_tokens, sample=sample)
        self._prompts.append((request, shape))
        self.num_tokens += num_tokens
        self.num_prompt_tokens += num_tokens
        self._num_context_tokens += shape.num_context_tokens
        self._num_attended_tokens += shape.num_attended_tokens
