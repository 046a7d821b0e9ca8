"""Composes the next step of one worker: memory, decodes and prompts, in the policy's order.

Running sequences come before waiting requests, and the first running one in `Request.order` is
never preempted. It can take all memory there is, so it ends; and then the next one is first.
That is why nothing starves and no two requests can preempt each other for ever.

A request that does not fit is passed over by smaller ones behind it, but by no more than
MAX_OVERTAKES of them; from then on nothing behind it starts before it does.
"""

from itertools import islice

from common.messages import Chunk, NewSequence, StepPlan
from common.token_ids import pack_ids
from services.scheduler.cost_model import StepShape
from services.scheduler.events import SendStep
from services.scheduler.output_lengths import OutputLengths
from services.scheduler.policy import Policy
from services.scheduler.replicas import MAX_STEPS_IN_FLIGHT, Replica, Replicas, Step
from services.scheduler.request import Request, RequestStatus
from services.scheduler.stats import SchedulerStats

LOOKAHEAD = 8  # waiting requests that are tried per pass when the first ones do not fit
MAX_OVERTAKES = 16  # later requests that may start before one that does not fit
MAX_PREEMPTIONS = 3  # after so many a request is a victim only if there is no other


class _Draft:
    """A plan in the making."""

    __slots__ = (
        "chunks",
        "new_sequences",
        "num_attended_tokens",
        "num_context_tokens",
        "num_prompt_tokens",
        "num_tokens",
        "queue_times_s",
        "step",
    )

    def __init__(self, step_id: int) -> None:
        self.step = Step(step_id)
        self.chunks: list[Chunk] = []
        self.new_sequences: list[NewSequence] = []
        self.num_tokens = 0
        self.num_prompt_tokens = 0
        self.num_context_tokens = 0
        self.num_attended_tokens = 0
        self.queue_times_s: list[float] = []

    def shape(self) -> StepShape:
        """What the chunks so far amount to."""
        return StepShape(
            self.num_tokens,
            self.num_context_tokens,
            self.num_attended_tokens,
            len(self.chunks),
            len(self.step.samplers),
        )


class Planner:
    """Turns what a worker has to do into plans; `plan` is its only door."""

    def __init__(
        self, policy: Policy, replicas: Replicas, lengths: OutputLengths, stats: SchedulerStats
    ) -> None:
        self._policy = policy
        self._replicas = replicas
        self._lengths = lengths
        self._stats = stats
        self._next_step_id = 1
        self._next_sequence_id = 1

    def plan(self, replica: Replica, now: float) -> SendStep | None:
        """Compose and record the worker's next step; None if it has two or nothing can run.

        Requests that had to make room are left in `replica.evicted`.
        """
        if len(replica.in_flight) >= MAX_STEPS_IN_FLIGHT:
            return None
        draft = _Draft(self._next_step_id)
        if self._policy.decodes_first:
            self._add_decodes(draft, replica, now)
        if self._continue_prompts(draft, replica):
            self._start_prompts(draft, replica, now)
        if not self._policy.decodes_first:
            self._add_decodes(draft, replica, now)
        if draft.chunks:
            self._count(draft, replica)
        elif replica.in_flight or not replica.to_drop:
            return None  # else the worker idles: an empty step lets it forget what has ended
        return self._send(draft, replica)

    def _send(self, draft: _Draft, replica: Replica) -> SendStep:
        step = draft.step
        step.dropped = tuple(replica.to_drop)
        replica.to_drop.clear()
        shape = step.shape = draft.shape()
        replica.in_flight.append(step)
        self._next_step_id += 1
        plan = StepPlan(step.step_id, tuple(draft.chunks), tuple(draft.new_sequences), step.dropped)
        return SendStep(replica.worker, plan, shape, tuple(draft.queue_times_s))

    def _count(self, draft: _Draft, replica: Replica) -> None:
        stats = self._stats
        stats.num_steps += 1
        stats.num_prompt_tokens += draft.num_prompt_tokens
        if replica.waiting or replica.prefills:
            stats.num_backlog_steps += 1
            stats.num_full_backlog_steps += draft.num_tokens == replica.token_budget

    # ── decodes ──────────────────────────────────────────────────────────────────────────────────

    def _add_decodes(self, draft: _Draft, replica: Replica, now: float) -> None:
        """As many as the policy wants, once there is memory for all of them."""
        room = replica.token_budget - draft.num_tokens
        wanted = self._policy.num_decodes(len(replica.decodes), room, draft.num_prompt_tokens)
        if replica.num_running and (wanted or not draft.chunks):
            self._secure_memory(replica, now)
            _add_decode_chunks(draft, replica, wanted)

    # ── memory ───────────────────────────────────────────────────────────────────────────────────

    def _secure_memory(self, replica: Replica, now: float) -> None:
        """Preempt until every decode, and the first running request, can take its next token."""
        while replica.pool.num_available <= len(replica.decodes):
            first = min(replica.running(), key=lambda r: r.order)
            if _blocks_needed(replica, first) <= replica.pool.num_available:
                return
            victim = self._cheapest_victim(replica, first)
            if victim is None:
                return
            self._preempt(replica, victim, now)

    def _cheapest_victim(self, replica: Replica, first: Request) -> Request | None:
        """The request whose KV costs fewest tokens to compute again; the latest of equals."""
        candidates = [r for r in replica.running() if r is not first]
        if not candidates:
            return None
        return min(
            candidates,
            key=lambda r: (
                r.num_preemptions >= MAX_PREEMPTIONS,
                replica.pool.ref_count(r.block_table[-1]) > 1,  # would free nothing
                _recompute_tokens(replica, r),
                (-r.priority, -r.arrival),
            ),
        )

    def _preempt(self, replica: Replica, victim: Request, now: float) -> None:
        sequence_id = victim.sequence_id
        assert sequence_id is not None  # noqa: S101 - a running request has one
        replica.release(victim)
        replica.evicted[sequence_id] = victim
        victim.num_preemptions += 1
        self._stats.num_preemptions += 1
        victim.move(RequestStatus.PREEMPTED, now, f"no KV block left on {replica.worker}")

    # ── prompts ──────────────────────────────────────────────────────────────────────────────────

    def _continue_prompts(self, draft: _Draft, replica: Replica) -> bool:
        """Chunks of prompts that have started; False if one of them lacked memory."""
        if not replica.prefills:
            return True
        enough = True
        prompts = sorted(replica.prefills.values(), key=lambda r: r.order)
        for index, request in enumerate(prompts):
            room = replica.token_budget - draft.num_tokens
            if room <= 0:
                break
            wanted = self._policy.num_prompt_tokens(
                request.num_uncomputed_tokens,
                room,
                others_wait=index + 1 < len(prompts) or bool(replica.waiting),
            )
            num_tokens = min(wanted, replica.free_room(request))
            enough = enough and num_tokens == wanted
            if num_tokens:
                _add_prompt_chunk(draft, replica, request, num_tokens)
        return enough

    def _start_prompts(self, draft: _Draft, replica: Replica, now: float) -> None:
        """Start waiting requests while there is room for their first chunk."""
        if replica.draining:
            return
        passed_over: list[Request] = []
        while (
            draft.num_tokens < replica.token_budget
            and replica.num_running < replica.max_num_seqs
            and replica.pool.num_available
            and len(passed_over) < LOOKAHEAD
        ):
            request = replica.waiting.peek()
            if request is None:
                request = None if passed_over else self._replicas.steal(replica)
                if request is None:
                    break
            if self._try_start(draft, replica, request, bool(passed_over), now):
                for other in passed_over:
                    other.num_overtakes += 1
            elif request.num_overtakes >= MAX_OVERTAKES:
                break
            else:
                replica.waiting.remove(request)
                passed_over.append(request)
        for request in passed_over:
            replica.waiting.push(request)

    def _try_start(
        self, draft: _Draft, replica: Replica, request: Request, passed_over: bool, now: float
    ) -> bool:
        """Start the request if its chunk has memory now, and its end is predicted to have it."""
        block_size, pool = replica.block_size, replica.pool
        hits = replica.cached_blocks(request)
        num_cached = len(hits) * block_size
        num_tokens = self._policy.num_prompt_tokens(
            len(request.token_ids) - num_cached,
            replica.token_budget - draft.num_tokens,
            others_wait=passed_over or len(replica.waiting) > 1,
        )
        if not num_tokens:
            return False
        num_idle_hits = pool.num_idle(hits)
        num_now = -(-(num_cached + num_tokens) // block_size) - len(hits) + num_idle_hits
        num_in_the_end = -(-self._predicted_tokens(replica, request) // block_size)
        growth = max(num_now, num_in_the_end - len(hits) + num_idle_hits)
        if num_now > pool.num_available:
            return False
        if pool.num_held + replica.growth_blocks + growth > pool.num_blocks:
            return False
        replica.waiting.remove(request)
        pool.touch(hits)
        request.growth_blocks = growth - num_idle_hits
        replica.growth_blocks += request.growth_blocks
        self._introduce(draft, replica, request, hits, now)
        _add_prompt_chunk(draft, replica, request, num_tokens)
        return True

    def _introduce(
        self, draft: _Draft, replica: Replica, request: Request, hits: list[int], now: float
    ) -> None:
        """Make the request a sequence of the worker that has the KV of `hits` already."""
        request.move(RequestStatus.RUNNING, now, f"started on {replica.worker}")
        sequence_id = request.sequence_id = self._next_sequence_id
        self._next_sequence_id += 1
        request.block_table = hits
        request.num_computed_tokens = len(hits) * replica.block_size
        request.max_total_tokens = _max_total_tokens(replica, request)
        if request.num_cached_tokens is None:
            draft.queue_times_s.append(now - request.arrived_at)
            request.num_cached_tokens = min(request.num_computed_tokens, request.num_prompt_tokens)
            self._stats.num_cache_query_tokens += request.num_prompt_tokens
            self._stats.num_cache_hit_tokens += request.num_cached_tokens
        replica.prefills[sequence_id] = request
        draft.new_sequences.append(
            NewSequence(
                sequence_id,
                pack_ids(request.token_ids),
                request.num_prompt_tokens,
                request.num_computed_tokens,
                pack_ids(hits),
                request.sampling,
            )
        )

    def _predicted_tokens(self, replica: Replica, request: Request) -> int:
        """Length that the request is expected to reach.

        Also of one that no token stops: a stop string or its client may, and that is learned.
        """
        limit = _max_total_tokens(replica, request)
        num_output = max(self._lengths.expected, request.num_output_tokens + 1)
        return min(limit, request.num_prompt_tokens + num_output)


def _add_decode_chunks(draft: _Draft, replica: Replica, wanted: int) -> None:
    """One token each; the loop that every step pays for every stream."""
    block_size = replica.block_size
    samplers = draft.step.samplers
    chunks = draft.chunks
    num_before = len(chunks)
    num_context_tokens = 0
    for sequence_id, request in islice(replica.decodes.items(), wanted):
        computed = request.num_computed_tokens
        if computed + 1 >= request.max_total_tokens:
            continue  # its last token is in flight
        num_context_tokens += computed + 1
        new_blocks = b"" if computed % block_size else pack_ids(replica.take_blocks(request, 1))
        chunks.append(Chunk(sequence_id, computed, 1, new_blocks, True))
        samplers[sequence_id] = request
        request.num_computed_tokens = computed + 1
        request.num_pending_tokens += 1
    draft.num_tokens += len(chunks) - num_before
    draft.num_context_tokens += num_context_tokens
    draft.num_attended_tokens += num_context_tokens


def _add_prompt_chunk(draft: _Draft, replica: Replica, request: Request, num_tokens: int) -> None:
    """Put the next tokens of a running request, all of them known, into the draft."""
    sequence_id = request.sequence_id
    assert sequence_id is not None  # noqa: S101 - a running request has one
    start = request.num_computed_tokens
    end = start + num_tokens
    num_blocks = -(-end // replica.block_size) - len(request.block_table)
    new_blocks = pack_ids(replica.take_blocks(request, num_blocks))
    draft.step.registered += replica.register(request, start, end)
    request.num_computed_tokens = end
    sample = end == len(request.token_ids)
    if sample:
        request.num_pending_tokens += 1
        replica.decodes[sequence_id] = replica.prefills.pop(sequence_id)
        draft.step.samplers[sequence_id] = request
    else:
        draft.step.partial.append((sequence_id, request))
    draft.chunks.append(Chunk(sequence_id, start, num_tokens, new_blocks, sample))
    draft.num_tokens += num_tokens
    draft.num_prompt_tokens += num_tokens
    draft.num_context_tokens += end
    draft.num_attended_tokens += (start + 1 + end) * num_tokens // 2


def _max_total_tokens(replica: Replica, request: Request) -> int:
    max_tokens = request.sampling.max_tokens
    if max_tokens is None:
        return replica.length_limit
    return min(replica.length_limit, request.num_prompt_tokens + max_tokens)


def _blocks_needed(replica: Replica, first: Request) -> int:
    """Blocks that this step takes for its decodes and for one token of the first request."""
    block_size = replica.block_size
    needed = sum(
        r.num_computed_tokens % block_size == 0 and r.num_computed_tokens + 1 < r.max_total_tokens
        for r in replica.decodes.values()
    )
    is_prefill = first.sequence_id in replica.prefills
    stuck = is_prefill and len(first.block_table) * block_size == first.num_computed_tokens
    return needed + stuck


def _recompute_tokens(replica: Replica, request: Request) -> int:
    """Tokens whose KV would be lost: those not in the leading blocks that others hold too."""
    pool = replica.pool
    num_shared = 0
    for block_id in request.block_table:
        if pool.ref_count(block_id) == 1:
            break
        num_shared += 1
    return request.num_computed_tokens - min(
        request.num_computed_tokens, num_shared * replica.block_size
    )
