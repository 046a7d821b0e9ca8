"""The scheduler as a pure function: events in, instructions out.

No clock, socket, log or random source in here: the same events at the same times give the same
instructions. No event that a peer can cause makes it raise: unknown ids, repeated events, results
of workers that are gone and nonsense inside messages are ignored or fail one request. What
does raise (`InvalidTransition`) is a bug of ours.

What is kept of a request is enough to go on anywhere: prompt, emitted ids, parameters. When a
worker dies or refuses a step, its requests wait again and their KV is recomputed; since
sampling depends only on (seed, position), they go on as they would have.
"""

from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import inf

from common.errors import FailureCode
from common.messages import (
    CancelReason,
    FinishReason,
    GenerateRequest,
    Heartbeat,
    RequestFailed,
    SampledToken,
    StepResult,
    TokenDelta,
    TokenDeltas,
    TokenLogprob,
    WorkerJoin,
)
from common.token_ids import ITEM_BYTES, pack_ids, unpack_ids
from services.scheduler.cost_model import NS_PER_MS
from services.scheduler.events import (
    EmitTokens,
    Event,
    FailRequest,
    Instruction,
    LiveRequestsListed,
    OwnerLost,
    RefuseWorker,
    ReportUnknown,
    RequestArrived,
    RequestCancelled,
    StatusChanged,
    StepFinished,
    StepRefused,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from services.scheduler.output_lengths import OutputLengths
from services.scheduler.planner import Planner
from services.scheduler.policy import Policy
from services.scheduler.ranking import Ranking
from services.scheduler.replicas import Replica, Replicas, Step, unusable
from services.scheduler.request import ENDED, STORY_LENGTH, Request, RequestStatus
from services.scheduler.stats import SchedulerStats
from services.scheduler.time_account import TimeAccount
from services.scheduler.waiting_queue import WaitingQueue

MAX_WORKER_LOSSES = 3  # a request in flight on so many lost workers is what kills them
MAX_REJECTIONS = 3  # a request that so many steps were refused for will not be understood


@dataclass(frozen=True, slots=True)
class CoreOptions:
    """The scheduler's part of `common.config.SchedulerConfig`."""

    policy: Policy
    token_budget: int | None  # tokens per pass; None: by the kind of device
    max_num_seqs: int  # running at once on one worker
    max_queued_tokens: int | None  # waiting at once; None: no limit
    caching: bool  # share blocks of equal prefixes
    target_tbt_ms: float | None = None  # P99 of the time between tokens of a stream
    target_ttft_ms: float | None = None  # of the time to the first token


class SchedulerCore:
    """`handle` is the only door; the rest is for reading.

    Args:
        options: see there.
        replicas: without workers; how they are placed on. None: by backlog.
    """

    def __init__(self, options: CoreOptions, replicas: Replicas | None = None) -> None:
        self._options = options
        self._stats = SchedulerStats()
        #: all requests that have not ended, by owner and request id; no owner without any
        self._requests: dict[str, dict[str, Request]] = {}
        self._replicas = replicas if replicas is not None else Replicas()
        #: requests that wait and that no worker can be asked to run
        self._unplaced = WaitingQueue()
        self._lengths = OutputLengths()
        self._ranking = Ranking(self._replicas, self._lengths, options.target_ttft_ms)
        self._planner = Planner(
            options.policy, self._replicas, self._lengths, self._ranking, self._stats
        )
        self._time_account = TimeAccount()
        self._num_arrivals = 0
        self._status = Heartbeat(ready=False, draining=False)
        self._workers_changed = False  #: one joined, left or began to drain
        #: filled during one call of `handle`, empty between calls
        self._instructions: list[Instruction] = []
        self._deltas: defaultdict[str, list[TokenDelta]] = defaultdict(list)

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take note of an event and decide what follows from it.

        Args:
            event: what happened.
            now: seconds on a clock that does not go back.

        Returns:
            What to do, in this order: steps first, since workers wait for them; then at most one
            `EmitTokens` per owner.
        """
        self._dispatch(event, now)
        outcome, self._instructions = self._instructions, []
        self._plan(now)
        for owner, deltas in self._deltas.items():
            self._instructions.append(EmitTokens(owner, TokenDeltas(tuple(deltas))))
        self._deltas.clear()
        self._instructions += outcome
        if self._workers_changed or isinstance(event, Tick):
            self._report_status()
        instructions, self._instructions = self._instructions, []
        return instructions

    @property
    def options(self) -> CoreOptions:
        """What it was made with."""
        return self._options

    @property
    def replicas(self) -> Replicas:
        """The workers; to be read only."""
        return self._replicas

    @property
    def time_account(self) -> TimeAccount:
        """Device time by tenant; to be read only."""
        return self._time_account

    def requests(self) -> Iterator[Request]:
        """All requests that have not ended; to be read only."""
        for mine in self._requests.values():
            yield from mine.values()

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return sum(map(len, self._requests.values()))

    @property
    def stats(self) -> SchedulerStats:
        """A copy of the counters, with the numbers of now: reading it changes nothing."""
        replicas = list(self._replicas)
        num_running = sum(replica.num_running for replica in replicas)
        num_blocks = sum(replica.pool.num_blocks for replica in replicas)
        num_held = sum(replica.pool.num_held for replica in replicas)
        budgets = [replica.budget for replica in replicas]
        return replace(
            self._stats,
            num_running=num_running,
            num_waiting=self.num_requests - num_running,
            num_queued_tokens=self._num_queued_tokens,
            token_budget=min((b.tokens for b in budgets), default=0),
            slow_ratio=max((b.slow_ratio.value for b in budgets), default=0.0),
            step_time_error=max((b.model.relative_error for b in budgets), default=0.0),
            kv_usage=num_held / num_blocks if num_blocks else 0.0,
            num_workers=len(replicas),
        )

    def _dispatch(self, event: Event, now: float) -> None:
        match event:
            case StepFinished(worker, result):
                self._step_finished(worker, result, now)
            case RequestArrived(owner, message):
                self._request_arrived(owner, message, now)
            case RequestCancelled(owner, request_id, reason):
                self._request_cancelled(owner, request_id, reason, now)
            case OwnerLost(owner):
                for request in list(self._requests.get(owner, {}).values()):
                    self._cancel(request, "its owner is lost", now)
            case LiveRequestsListed(owner, request_ids):
                self._live_requests_listed(owner, request_ids, now)
            case StepRefused(worker, message):
                self._step_refused(worker, message.step_id, message.sequence_ids, now)
            case WorkerJoined(worker, message):
                self._worker_joined(worker, message, now)
            case WorkerLost(worker):
                self._worker_lost(worker, now)
            case WorkerDraining(worker):
                self._worker_draining(worker, now)
            case Tick():
                for replica in self._replicas:
                    replica.budget.refresh()

    def _plan(self, now: float) -> None:
        """Fill every worker's pipeline.

        Asked until nobody has more to do: what one worker gives up may run on another.
        """
        progress = True
        while progress:
            progress = False
            for replica in self._replicas:
                send = self._planner.plan(replica, now)
                if replica.evicted:
                    for request in [
                        r for r in replica.evicted.values() if not r.num_pending_tokens
                    ]:
                        self._requeue(request, "preempted", now)
                if send is not None:
                    self._instructions.append(send)
                    progress = True

    # ── requests come and go ─────────────────────────────────────────────────────────────────────

    def _request_arrived(self, owner: str, message: GenerateRequest, now: float) -> None:
        known = self._requests.get(owner, {}).get(message.request_id)
        if known is not None:
            self._cancel(known, "sent again", now)
        refusal = _malformed(message) or self._overloaded(message)
        if refusal is not None:
            self._stats.num_failed += 1
            self._emit_failure(owner, message.request_id, *refusal)
            return
        self._num_arrivals += 1
        request = _new_request(owner, message, self._num_arrivals, now)
        request.target_tbt_ms = min(
            _target(self._options.target_tbt_ms), _target(message.target_tbt_ms)
        )
        self._requests.setdefault(owner, {})[request.request_id] = request
        self._ranking.arrived(request)
        num_output = request.num_output_tokens
        if num_output and request.ended_by(request.token_ids[-1], num_output - 1):
            self._finish(request, "stop", request.token_ids[-1], now)
        elif num_output >= (message.sampling.max_tokens or num_output + 1):
            self._finish(request, "length", None, now)
        else:
            self._place(request, now)

    def _overloaded(self, message: GenerateRequest) -> tuple[FailureCode, str] | None:
        """Whether the queue is full for a request that has not started anywhere yet."""
        limit, queued = self._options.max_queued_tokens, self._num_queued_tokens
        num_tokens = len(message.prompt_ids) // ITEM_BYTES
        if limit is None or message.output_ids or not queued or queued + num_tokens <= limit:
            return None
        return FailureCode.OVERLOADED, (
            f"The queue is full: {queued} prompt tokens wait, the prompt has {num_tokens}, "
            f"and at most {limit} may wait."
        )

    @property
    def _num_queued_tokens(self) -> int:
        return self._unplaced.num_tokens + sum(r.waiting.num_tokens for r in self._replicas)

    def _request_cancelled(
        self, owner: str, request_id: str, reason: CancelReason, now: float
    ) -> None:
        request = self._requests.get(owner, {}).get(request_id)
        if request is None:
            return
        if reason == "stop_string":
            self._lengths.observe(request.num_output_tokens)
            self._stats.num_stopped += 1
            self._end(request, RequestStatus.CANCELLED, reason, now)
        else:
            self._cancel(request, reason, now)

    def _live_requests_listed(self, owner: str, request_ids: tuple[str, ...], now: float) -> None:
        mine = self._requests.get(owner, {})
        unknown = tuple(request_id for request_id in request_ids if request_id not in mine)
        listed = set(request_ids)
        for request in [r for request_id, r in mine.items() if request_id not in listed]:
            self._cancel(request, "its owner does not list it", now)
        if unknown:
            self._instructions.append(ReportUnknown(owner, unknown))

    def _place(self, request: Request, now: float) -> None:
        """Put a WAITING request that is in no queue into the right one, or end it."""
        accepting = self._replicas.accepting()
        if not accepting:
            request.worker = None
            self._unplaced.push(request)
            return
        vocab_size = accepting[0].join.vocab_size
        largest = max(request.token_ids)
        if largest >= vocab_size:
            message = f"Token id {largest} is outside the vocabulary of {vocab_size} tokens."
            self._fail(request, FailureCode.INVALID_REQUEST, message, now)
            return
        replica = self._replicas.place(request)
        if replica is not None:
            request.worker = replica.worker
            replica.waiting.push(request)
        elif request.num_output_tokens:
            self._finish(request, "length", None, now)
        else:
            self._fail(request, *self._too_long(request, accepting), now)

    def _too_long(self, request: Request, accepting: list[Replica]) -> tuple[FailureCode, str]:
        """Why no worker is big enough for the prompt, by the most roomy one."""
        num_tokens = len(request.token_ids)
        join = max(accepting, key=lambda r: r.length_limit).join
        if num_tokens >= join.max_model_len:
            return FailureCode.CONTEXT_LENGTH_EXCEEDED, (
                f"This model's maximum context length is {join.max_model_len} tokens, and the "
                f"prompt has {num_tokens}; at least one token of output needs room."
            )
        return FailureCode.KV_CACHE_EXCEEDED, (
            f"The KV cache holds {join.num_blocks * join.block_size} tokens, and the prompt has "
            f"{num_tokens}; at least one token of output needs room."
        )

    def _requeue(self, request: Request, why: str, now: float) -> None:
        """Forget all KV and all that is in flight of a request, and let it wait for its turn."""
        if request.num_untold_tokens:
            self._tell(request)  # the next token may take a while
        self._detach(request)
        request.move(RequestStatus.WAITING, now, why)
        self._place(request, now)

    def _detach(self, request: Request) -> None:
        """Take the request out of whatever holds it; its status is still the old one."""
        replica = self._replicas[request.worker] if request.worker is not None else None
        sequence_id = request.sequence_id
        if replica is None:
            if request in self._unplaced:
                self._unplaced.remove(request)
        elif request.status is RequestStatus.RUNNING:
            replica.release(request)
        elif request.status is RequestStatus.PREEMPTED and sequence_id is not None:
            del replica.evicted[sequence_id]
        elif request in replica.waiting:
            replica.waiting.remove(request)
        request.worker = request.sequence_id = None
        request.num_pending_tokens = 0

    def _finish(
        self, request: Request, reason: FinishReason, stop_token_id: int | None, now: float
    ) -> None:
        """End a request of which nothing more is to come."""
        self._tell(request, reason, stop_token_id)
        self._finished(request, reason, now)

    def _tell(
        self,
        request: Request,
        reason: FinishReason | None = None,
        stop_token_id: int | None = None,
    ) -> None:
        """Emit what the owner does not know yet; once per stream and step, so kept tight."""
        token_ids, num_told = request.token_ids, request.num_told_tokens
        request.num_told_tokens = num_known = len(token_ids)
        if num_known - num_told == 1:
            packed = token_ids[num_told].to_bytes(ITEM_BYTES, "little")
        else:
            packed = pack_ids(token_ids[num_told:])
        logprobs: tuple[TokenLogprob, ...] = ()
        if request.untold_logprobs:
            logprobs = tuple(request.untold_logprobs)
            request.untold_logprobs.clear()
        self._deltas[request.owner].append(
            TokenDelta(
                request.request_id,
                num_told - request.num_prompt_tokens,
                packed,
                logprobs,
                reason,
                stop_token_id,
                request.num_cached_tokens or 0,
            )
        )

    def _finished(self, request: Request, reason: FinishReason, now: float) -> None:
        """Account for a request whose last delta is emitted."""
        if reason == "stop":
            self._stats.num_stopped += 1
        else:
            self._stats.num_length += 1
        self._lengths.observe(request.num_output_tokens)
        self._end(request, RequestStatus.FINISHED, reason, now)

    def _cancel(self, request: Request, why: str, now: float) -> None:
        self._stats.num_cancelled += 1
        self._end(request, RequestStatus.CANCELLED, why, now)

    def _fail(self, request: Request, code: FailureCode, message: str, now: float) -> None:
        self._stats.num_failed += 1
        if request.num_untold_tokens:
            self._tell(request)
        self._emit_failure(request.owner, request.request_id, code, message)
        self._end(request, RequestStatus.FAILED, message, now)

    def _emit_failure(self, owner: str, request_id: str, code: FailureCode, message: str) -> None:
        failure = RequestFailed(request_id, code.value, message)
        self._instructions.append(FailRequest(owner, failure))

    def _end(self, request: Request, status: RequestStatus, why: str, now: float) -> None:
        self._detach(request)
        self._ranking.ended(request)
        request.move(status, now, why)
        siblings = self._requests[request.owner]
        del siblings[request.request_id]
        if not siblings:
            del self._requests[request.owner]

    # ── steps ────────────────────────────────────────────────────────────────────────────────────

    def _answered(self, worker: str, step_id: int, now: float) -> tuple[Replica, Step] | None:
        """The step that an answer is for, now the oldest in flight; None if it is not in flight.

        Workers answer in order, so the answers to steps before it will never come.
        """
        replica = self._replicas.get(worker)
        if replica is None or all(step.step_id != step_id for step in replica.in_flight):
            self._stats.num_ignored_results += 1
            return None
        while replica.in_flight[0].step_id != step_id:
            self._undo_step(replica, replica.in_flight[0], (), "a step of it had no result", now)
        return replica, replica.in_flight[0]

    def _step_finished(self, worker: str, result: StepResult, now: float) -> None:
        answered = self._answered(worker, result.step_id, now)
        if answered is None:
            return
        replica, step = answered
        replica.in_flight.popleft()
        waited_ms = replica.learn(step, result.step_ns, now)
        if not step.void:
            self._stats.num_late_steps += waited_ms > step.limit_ms
            for tenant, share in step.shares:
                self._time_account.charge(tenant, share * max(0, result.step_ns) / NS_PER_MS)
        self._accept_samples(replica, step, result.sampled, now)
        for fault in result.faults:
            faulty = step.samplers.pop(fault.sequence_id, None)
            if faulty is not None and faulty.sequence_id == fault.sequence_id:
                message = f"The model failed on this request: {fault.reason}"
                self._fail(faulty, FailureCode.INTERNAL, message, now)
        for sequence_id, request in step.samplers.items():
            if request.sequence_id == sequence_id:
                self._reject(request, "the worker sampled no token for it", now)

    def _accept_samples(
        self, replica: Replica, step: Step, sampled: Iterable[SampledToken], now: float
    ) -> None:
        """Append the sampled tokens to their requests; once per stream and step, so kept tight."""
        samplers, preempted = step.samplers, RequestStatus.PREEMPTED
        vocab_size, block_size = replica.join.vocab_size, replica.block_size
        num_steps = replica.num_steps
        num_accepted = 0
        for sample in sampled:
            sequence_id, token_id = sample.sequence_id, sample.token_id
            request = samplers.get(sequence_id)
            if request is None or not 0 <= token_id < vocab_size:
                continue
            del samplers[sequence_id]
            if request.sequence_id != sequence_id:
                continue  # it has ended or waits again
            num_accepted += 1
            token_ids = request.token_ids
            position = len(token_ids)
            num_before = position - request.num_prompt_tokens
            if not num_before and now > request.first_token_by:
                self._stats.num_late_first_tokens += 1
            token_ids.append(token_id)
            request.num_pending_tokens -= 1
            reason: FinishReason | None = None
            if token_id in request.stop_token_ids and request.ended_by(token_id, num_before):
                reason = "stop"
            elif position + 1 >= request.max_total_tokens:
                reason = "length"
            if sample.logprob is not None:
                request.untold_logprobs.append(sample.logprob)
            if reason is not None or request.stream_interval == 1 or request.is_told(num_steps):
                self._tell(request, reason, token_id if reason == "stop" else None)
            if reason is not None:
                self._finished(request, reason, now)
            elif request.status is preempted:
                if not request.num_pending_tokens:
                    self._requeue(request, "its last result is in", now)
            elif not position % block_size:
                # The KV of all tokens before this one is in memory now.
                replica.register(request, position - 1, position)
        self._stats.num_output_tokens += num_accepted

    def _step_refused(self, worker: str, step_id: int, blamed: tuple[int, ...], now: float) -> None:
        answered = self._answered(worker, step_id, now)
        if answered is not None:
            self._undo_step(*answered, blamed, "the worker refused a step of it", now)

    def _undo_step(
        self, replica: Replica, step: Step, blamed: tuple[int, ...], why: str, now: float
    ) -> None:
        """A step did not run: what it and the steps planned on top of it were to compute is void.

        Args:
            step: the oldest in flight; taken out.
            blamed: sequences that caused it; none of the step's own means all of them.
        """
        self._stats.num_refused_steps += 1
        replica.in_flight.popleft()
        replica.to_drop.extend(step.dropped)
        if step.void:
            return
        own = dict(step.sequences())
        causes = own.keys() & set(blamed) or own.keys()
        for other in (step, *replica.in_flight):
            other.void = True
            replica.cache.forget(other.registered)
            for sequence_id, request in other.sequences():
                if request.sequence_id != sequence_id:
                    continue
                if sequence_id in causes:
                    self._reject(request, why, now)
                else:
                    self._requeue(request, "a step before it did not run", now)

    def _reject(self, request: Request, why: str, now: float) -> None:
        """Send the request in full again, unless that has been in vain too often."""
        request.num_rejections += 1
        if request.num_rejections < MAX_REJECTIONS:
            self._requeue(request, why, now)
            return
        message = f"The request failed {MAX_REJECTIONS} times: {why}."
        self._fail(request, FailureCode.INTERNAL, message, now)

    # ── workers ──────────────────────────────────────────────────────────────────────────────────

    def _worker_joined(self, worker: str, join: WorkerJoin, now: float) -> None:
        if self._replicas.get(worker) is not None:
            self._worker_lost(worker, now)
        reason = unusable(join, list(self._replicas))
        if reason is not None:
            self._instructions.append(RefuseWorker(worker, reason))
            return
        options = self._options
        replica = Replica(
            worker,
            join,
            max_num_seqs=options.max_num_seqs,
            token_budget=options.token_budget,
            target_tbt_ms=options.target_tbt_ms,
            policy=options.policy,
            caching=options.caching,
        )
        self._replicas.add(replica)
        self._workers_changed = True
        self._replace(self._unplaced, now)

    def _worker_draining(self, worker: str, now: float) -> None:
        replica = self._replicas.get(worker)
        if replica is not None and not replica.draining:
            replica.draining = True
            self._workers_changed = True
            self._replace(replica.waiting, now)

    def _worker_lost(self, worker: str, now: float) -> None:
        replica = self._replicas.get(worker)
        if replica is None:
            return
        self._stats.num_lost_workers += 1
        replica.draining = True
        in_flight = {
            request
            for step in replica.in_flight
            for sequence_id, request in step.sequences()
            if request.sequence_id == sequence_id
        }
        for request in [*replica.running(), *replica.evicted.values()]:
            request.num_worker_losses += request in in_flight
            if request.num_worker_losses < MAX_WORKER_LOSSES:
                self._requeue(request, "its worker is lost", now)
            else:
                message = f"{MAX_WORKER_LOSSES} workers died while they ran this request."
                self._fail(request, FailureCode.INTERNAL, message, now)
        self._replace(replica.waiting, now)
        self._replicas.remove(worker)
        self._workers_changed = True

    def _replace(self, queue: WaitingQueue, now: float) -> None:
        """Place all requests of a queue anew, in their order."""
        for request in sorted(queue, key=lambda r: r.order):
            self._detach(request)
            self._place(request, now)

    # ── status ───────────────────────────────────────────────────────────────────────────────────

    def _report_status(self) -> None:
        self._workers_changed = False
        num_workers = len(self._replicas.accepting())
        status = Heartbeat(
            ready=num_workers > 0,
            draining=False,
            num_requests=self.num_requests,
            limits=self._replicas.limits(),
            num_workers=num_workers,
        )
        if status != self._status:
            self._status = status
            self._instructions.append(StatusChanged(status))

    # ── invariants ───────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        """Raise AssertionError unless everything stated about the state is true; for tests."""
        live = [request for mine in self._requests.values() for request in mine.values()]
        places: Counter[Request] = Counter(self._unplaced)
        for replica in self._replicas:
            replica.check()
            places.update(replica.waiting)
            places.update(replica.running())
            places.update(replica.evicted.values())
        if places != Counter(live):
            raise AssertionError("a request is lost, is in two places or outlives its end")
        if self._unplaced and self._replicas.accepting():
            raise AssertionError("a request waits for a worker although there is one")
        for owner, mine in self._requests.items():
            for request_id, request in mine.items():
                if request.key != (owner, request_id) or request.status in ENDED:
                    raise AssertionError(f"{request_id} is filed wrongly")
                if not 0 <= request.num_untold_tokens < request.stream_interval:
                    raise AssertionError(f"{request_id} has tokens that its owner should know")


def _malformed(message: GenerateRequest) -> tuple[FailureCode, str] | None:
    """Why the request cannot be run whatever the worker."""
    prompt, output = message.prompt_ids, message.output_ids
    if not prompt:
        return FailureCode.INVALID_REQUEST, "The prompt is empty; it needs at least one token."
    if len(prompt) % ITEM_BYTES or len(output) % ITEM_BYTES:
        return FailureCode.INVALID_REQUEST, "Token ids are not packed as 32-bit integers."
    if min(unpack_ids(prompt + output)) < 0:
        return FailureCode.INVALID_REQUEST, "A token id is negative."
    max_tokens = message.sampling.max_tokens
    if max_tokens is not None and max_tokens < 1:
        return FailureCode.INVALID_REQUEST, f"max_tokens is {max_tokens}, it must be at least 1."
    interval = message.stream_interval
    if interval < 1:
        return FailureCode.INVALID_REQUEST, f"stream_interval is {interval}, must be at least 1."
    return None


def _new_request(owner: str, message: GenerateRequest, arrival: int, now: float) -> Request:
    token_ids = array("i", unpack_ids(message.prompt_ids + message.output_ids))
    return Request(
        owner=owner,
        request_id=message.request_id,
        arrival=arrival,
        arrived_at=now,
        token_ids=token_ids,
        num_prompt_tokens=len(message.prompt_ids) // ITEM_BYTES,
        sampling=message.sampling,
        stop_token_ids=frozenset(message.sampling.stop_token_ids),
        priority=message.priority,
        tenant=message.tenant,
        stream_interval=message.stream_interval,
        num_told_tokens=len(token_ids),
        story=deque([(now, "arrived")], maxlen=STORY_LENGTH),
    )


def _target(target_ms: float | None) -> float:
    """Milliseconds, infinite for no target or one that makes no sense."""
    return target_ms if target_ms is not None and target_ms > 0 else inf
