"""Composes the next step of one worker: memory, decodes and prompts, in the policy's order.

The first running sequence in `Request.order` is never preempted. It can take all memory there is,
so it ends; and then the next one is first. That is why nothing starves and no two requests can
preempt each other for ever: the order is total, and only finitely many come before any request.

A request that does not fit is passed over by smaller ones behind it, but by no more than
MAX_OVERTAKES of them; from then on nothing behind it starts before it does.
"""

from services.scheduler.draft import Draft
from services.scheduler.events import SendStep
from services.scheduler.output_lengths import OutputLengths
from services.scheduler.pass_budget import MIN_PROMPT_TOKENS
from services.scheduler.policy import Policy
from services.scheduler.ranking import Ranking
from services.scheduler.replicas import MAX_STEPS_IN_FLIGHT, Replica, Replicas
from services.scheduler.request import Request, RequestStatus
from services.scheduler.stats import SchedulerStats
from services.scheduler.time_account import shares

LOOKAHEAD = 8  # waiting requests that are tried per pass when the first ones do not fit
MAX_OVERTAKES = 16  # later requests that may start before one that does not fit
MAX_PREEMPTIONS = 3  # after so many a request is a victim only if there is no other


class Planner:
    """Turns what a worker has to do into plans; `plan` is its only door."""

    def __init__(
        self,
        policy: Policy,
        replicas: Replicas,
        lengths: OutputLengths,
        ranking: Ranking,
        stats: SchedulerStats,
    ) -> None:
        self._policy = policy
        self._replicas = replicas
        self._lengths = lengths
        self._ranking = ranking
        self._stats = stats
        self._next_step_id = 1
        self._next_sequence_id = 1

    def plan(self, replica: Replica, now: float) -> SendStep | None:
        """Compose and record the worker's next step; None if it has two or nothing can run.

        Requests that had to make room are left in `replica.evicted`.
        """
        if len(replica.in_flight) >= MAX_STEPS_IN_FLIGHT:
            return None
        draft = Draft(self._next_step_id, replica)
        if self._policy.decodes_first:
            self._add_decodes(draft, replica, now)
        if self._policy.splits_prompts:
            draft.limit = replica.budget.limit(
                draft.num_tokens, draft.step.limit_ms, prompts_wait=len(replica.waiting) > 0
            )
        self._add_prompts(draft, replica, now)
        if not self._policy.decodes_first:
            self._add_decodes(draft, replica, now)
        if not draft.is_empty:
            self._count(draft, replica)
        elif replica.in_flight or not replica.to_drop:
            return None  # else the worker idles: an empty step lets it forget what has ended
        return self._send(draft, replica, now)

    def _send(self, draft: Draft, replica: Replica, now: float) -> SendStep:
        step, budget = draft.step, replica.budget
        step.dropped = tuple(replica.to_drop)
        replica.to_drop.clear()
        shape = step.shape = draft.shape()
        step.predicted_ms = budget.model.predict_ms(shape)
        step.sent_at = now
        step.shares = shares(draft.shapes_by_tenant(), shape, budget.model)
        if step.predicted_ms * budget.slow_ratio.value > step.limit_ms and budget.is_known:
            self._stats.num_tbt_gave_way_steps += 1
        replica.in_flight.append(step)
        self._next_step_id += 1
        return SendStep(replica.worker, draft.plan(), shape, tuple(draft.queue_times_s))

    def _count(self, draft: Draft, replica: Replica) -> None:
        stats = self._stats
        stats.num_steps += 1
        stats.num_prompt_tokens += draft.num_prompt_tokens
        if replica.waiting or replica.prefills:
            stats.num_backlog_steps += 1
            stats.num_full_backlog_steps += draft.is_full

    # ── decodes ──────────────────────────────────────────────────────────────────────────────────

    def _add_decodes(self, draft: Draft, replica: Replica, now: float) -> None:
        """As many as the policy wants, once there is memory for all of them."""
        room = max(draft.limit.tokens, replica.max_num_seqs) - draft.num_tokens
        wanted = self._policy.num_decodes(len(replica.decodes), room, draft.num_prompt_tokens)
        if replica.num_running and (wanted or draft.is_empty):
            self._secure_memory(replica, now)
            draft.add_decodes(wanted)

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
                tuple(-part for part in r.order),
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

    def _add_prompts(self, draft: Draft, replica: Replica, now: float) -> None:
        """Chunks of prompts; what waits is first only if it comes before all that has started."""
        started = sorted(replica.prefills.values(), key=lambda r: r.order)
        if started:
            self._start_prompts(draft, replica, now, before=started[0])
        if self._continue_prompts(draft, replica, started):
            self._start_prompts(draft, replica, now)

    def _continue_prompts(self, draft: Draft, replica: Replica, prompts: list[Request]) -> bool:
        """Chunks of prompts that have started; False if one of them lacked memory."""
        enough = True
        for index, request in enumerate(prompts):
            num_uncomputed = request.num_uncomputed_tokens
            at_least = 0 if draft.num_prompt_tokens else MIN_PROMPT_TOKENS
            room = draft.room(request.num_computed_tokens, num_uncomputed, at_least)
            if room <= 0:
                break
            wanted = self._policy.num_prompt_tokens(
                num_uncomputed,
                room,
                others_wait=index + 1 < len(prompts) or bool(replica.waiting),
            )
            num_tokens = min(wanted, replica.free_room(request))
            enough = enough and num_tokens == wanted
            if num_tokens:
                draft.add_prompt_chunk(request, num_tokens)
        return enough

    def _start_prompts(
        self, draft: Draft, replica: Replica, now: float, before: Request | None = None
    ) -> None:
        """Start waiting requests, those that come before another, while there is room for them."""
        if replica.draining:
            return
        passed_over: list[Request] = []
        while (
            not draft.is_full
            and replica.num_running < replica.max_num_seqs
            and replica.pool.num_available
            and len(passed_over) < LOOKAHEAD
        ):
            request = replica.waiting.peek()
            if before is not None and (request is None or request.order > before.order):
                break
            if request is None:
                request = None if passed_over else self._replicas.steal(replica)
                if request is None:
                    break
            if self._try_start(draft, replica, request, bool(before or passed_over), now):
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
        self, draft: Draft, replica: Replica, request: Request, others_wait: bool, now: float
    ) -> bool:
        """Start the request if its chunk has memory now, and its end is predicted to have it."""
        block_size, pool = replica.block_size, replica.pool
        hits = replica.cached_blocks(request)
        num_cached = len(hits) * block_size
        num_uncomputed = len(request.token_ids) - num_cached
        room = self._room_to_start(draft, replica, num_cached, num_uncomputed)
        if room <= 0:
            return False
        num_tokens = self._policy.num_prompt_tokens(
            num_uncomputed, room, others_wait=others_wait or len(replica.waiting) > 1
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
        draft.add_prompt_chunk(request, num_tokens)
        return True

    def _room_to_start(
        self, draft: Draft, replica: Replica, num_cached: int, num_uncomputed: int
    ) -> int:
        """Tokens of a waiting prompt that the pass has room for; see `pass_budget` on targets."""
        is_first = not draft.num_prompt_tokens
        must_start = is_first and not replica.budget.can_keep(draft.limit.ms)
        room = draft.room(num_cached, num_uncomputed, MIN_PROMPT_TOKENS if must_start else 0)
        self._stats.num_ttft_gave_way_steps += is_first and room <= 0
        return room

    def _introduce(
        self, draft: Draft, replica: Replica, request: Request, hits: list[int], now: float
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
            self._ranking.started(request)
            request.num_cached_tokens = min(request.num_computed_tokens, request.num_prompt_tokens)
            self._stats.num_cache_query_tokens += request.num_prompt_tokens
            self._stats.num_cache_hit_tokens += request.num_cached_tokens
        replica.prefills[sequence_id] = request
        draft.introduce(sequence_id, request)

    def _predicted_tokens(self, replica: Replica, request: Request) -> int:
        """Length that the request is expected to reach.

        Also of one that no token stops: a stop string or its client may, and that is learned.
        """
        limit = _max_total_tokens(replica, request)
        num_output = max(self._lengths.expected, request.num_output_tokens + 1)
        return min(limit, request.num_prompt_tokens + num_output)


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
