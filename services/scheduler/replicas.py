"""The workers: what each can do, what runs on it, what is in flight, and who goes where.

A worker runs steps in the order in which they were sent. So everything here describes a worker as
it will be once all steps sent have run: blocks freed now may be reused by the next step, and blocks
that a step in flight fills may be shared by the next.
"""

from collections import Counter, deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from math import inf

from common.messages import Limits, WorkerJoin
from services.scheduler.block_pool import BlockPool
from services.scheduler.cost_model import NS_PER_MS, CostModel, StepShape
from services.scheduler.pass_budget import MIN_PROMPT_TOKENS, PassBudget
from services.scheduler.policy import Policy
from services.scheduler.prefix_cache import PrefixCache
from services.scheduler.request import Request, RequestStatus
from services.scheduler.waiting_queue import WaitingQueue
from services.scheduler.work import num_attended, prompts_ms

MAX_STEPS_IN_FLIGHT = 2  # one runs, the next is already there when it ends
# Tokens per pass when prompts are not split, on any device; as in vLLM 0.2.
WHOLE_PROMPT_TOKEN_BUDGET = 2048
# What a worker announces, each between 1 and MAX_CLAIM; the pool keeps a few words per block.
CLAIMS = (
    "num_blocks",
    "block_size",
    "blocks_per_group",
    "max_model_len",
    "vocab_size",
    "max_num_seqs",
)
MAX_CLAIM = 2**24
MS_PER_S = 1e3


@dataclass(slots=True, eq=False)
class Step:
    """A plan that was sent and whose result is outstanding."""

    step_id: int
    samplers: dict[int, Request] = field(default_factory=dict)  #: sequence id -> will get a token
    partial: list[tuple[int, Request]] = field(default_factory=list)  #: chunks without a sample
    registered: list[int] = field(
        default_factory=list
    )  #: blocks named because this step fills them
    dropped: tuple[int, ...] = ()  #: sequence ids that the plan drops
    shape: StepShape | None = None  #: what is in it; None until it is sent
    predicted_ms: float = 0.0  #: of its time on the device
    limit_ms: float = inf  #: the tightest target for the time between tokens among its streams
    sent_at: float = 0.0  #: seconds on the core's clock
    shares: tuple[tuple[str, float], ...] = ()  #: tenants, and what part of its time is theirs
    #: a step before it did not run: whatever its answer is, nothing follows from it
    void: bool = False

    def sequences(self) -> Iterator[tuple[int, Request]]:
        """All that are in the plan, minus the samples that were taken out already."""
        yield from self.samplers.items()
        yield from self.partial


class Replica:
    """One attached worker.

    Args:
        worker: its instance id.
        join: what it announced; `unusable` says None of it.
        max_num_seqs: the scheduler's cap on running sequences.
        token_budget: tokens per pass; None: as the policy needs, or else found.
        target_tbt_ms: time between tokens, P99, that passes are to keep; None: none.
        policy: may need passes of a certain size.
        caching: keep and share blocks of equal prefixes.
    """

    def __init__(
        self,
        worker: str,
        join: WorkerJoin,
        *,
        max_num_seqs: int,
        token_budget: int | None,
        target_tbt_ms: float | None,
        policy: Policy,
        caching: bool,
    ) -> None:
        self.worker = worker
        self.join = join
        self.block_size = join.block_size
        #: tokens of prompt + output that a sequence may reach here
        self.length_limit = min(join.max_model_len, join.num_blocks * join.block_size)
        max_num_seqs = min(max_num_seqs, join.max_num_seqs)
        if not policy.splits_prompts:
            wanted = token_budget or WHOLE_PROMPT_TOKEN_BUDGET
            token_budget = policy.token_budget(wanted, self.length_limit, max_num_seqs)
        self.budget = PassBudget(
            on_cpu=join.device.startswith("cpu"),
            fixed_tokens=token_budget,
            target_ms=target_tbt_ms if policy.splits_prompts else None,
            model=CostModel.from_timings(join.calibration),
        )
        #: every running sequence can decode in every pass
        self.max_num_seqs = min(max_num_seqs, self.budget.initial_tokens)
        self.pool = BlockPool(join.num_blocks, join.blocks_per_group)
        self.cache = PrefixCache(self.pool)
        self._caching = caching
        self.waiting = WaitingQueue()
        #: running, by sequence id: tokens that are known are left to compute
        self.prefills: dict[int, Request] = {}
        #: running, by sequence id: only the token sampled last, known or still in flight, is left
        #: to compute; the one that has decoded for longest first
        self.decodes: dict[int, Request] = {}
        #: preempted, by sequence id: samples of theirs are still in flight
        self.evicted: dict[int, Request] = {}
        self.in_flight: deque[Step] = deque()  #: oldest first, at most MAX_STEPS_IN_FLIGHT
        #: sequences that the worker still knows and nobody needs; they ride on the next plan
        self.to_drop: list[int] = []
        self.growth_blocks = 0  #: sum over running sequences of their `growth_blocks`
        self.num_steps = 0  #: that it has run
        self.draining = False  #: takes no requests
        self.last_result_at = -inf  #: seconds on the core's clock

    @property
    def num_running(self) -> int:
        return len(self.prefills) + len(self.decodes)

    def running(self) -> Iterator[Request]:
        yield from self.prefills.values()
        yield from self.decodes.values()

    def cached_blocks(self, request: Request) -> list[int]:
        """Blocks here that hold the beginning of the request; never all of it."""
        if not self._caching:
            return []
        num_tokens = len(request.token_ids)
        digests = request.digests(self.block_size, num_tokens)
        return self.cache.lookup(digests, (num_tokens - 1) // self.block_size)

    def free_room(self, request: Request) -> int:
        """Tokens of a running request that can be computed with the memory there is."""
        held = len(request.block_table) + self.pool.num_available
        return held * self.block_size - request.num_computed_tokens

    def take_blocks(self, request: Request, num_blocks: int) -> list[int]:
        """Append fresh blocks to the request's table; they must be available."""
        table = request.block_table
        block_ids = self.pool.allocate(num_blocks, table[-1] if table else None)
        self.cache.evict(self.pool.drain_evicted())
        table += block_ids
        expected = min(num_blocks, request.growth_blocks)
        request.growth_blocks -= expected
        self.growth_blocks -= expected
        return block_ids

    def register(self, request: Request, start: int, end: int) -> list[int]:
        """Name the blocks that become full when tokens [start, end) are computed.

        All of these tokens must be known. Returns the blocks that got a name.
        """
        first, last = start // self.block_size, end // self.block_size
        if first == last or not self._caching:
            return []
        digests = request.digests(self.block_size, end)
        table = request.block_table
        return [table[i] for i in range(first, last) if self.cache.register(table[i], digests[i])]

    def decodes_shape(self) -> StepShape:
        """What the decodes of the next pass amount to."""
        num_decodes = len(self.decodes)
        context = sum(r.num_computed_tokens for r in self.decodes.values()) + num_decodes
        return StepShape(num_decodes, context, context, num_decodes, num_decodes)

    def learn(self, step: Step, step_ns: int, now: float) -> float:
        """Learn what a pass costs from a step that ran, the oldest one in flight until now.

        Returns:
            Milliseconds that its streams waited for it: since the result before, or since it was
            sent to a worker that had nothing to do.
        """
        elapsed_ms = (now - max(step.sent_at, self.last_result_at)) * MS_PER_S
        self.last_result_at = now
        self.num_steps += 1
        if step.shape is not None and step.shape.num_tokens and step_ns > 0 and not step.void:
            self.budget.observe(
                step.shape,
                predicted_ms=step.predicted_ms,
                device_ms=step_ns / NS_PER_MS,
                elapsed_ms=elapsed_ms,
            )
        return elapsed_ms

    def release(self, request: Request) -> None:
        """Stop running a request here: its blocks are free for the next plan."""
        sequence_id = request.sequence_id
        assert sequence_id is not None  # noqa: S101 - a running request has one
        if self.prefills.pop(sequence_id, None) is None:
            del self.decodes[sequence_id]
        self.pool.free(request.block_table)
        request.block_table = []
        request.num_computed_tokens = 0
        self.growth_blocks -= request.growth_blocks
        request.growth_blocks = 0
        self.to_drop.append(sequence_id)

    def check(self) -> None:
        """Raise AssertionError unless everything stated about the state is true."""
        self.pool.check()
        self.cache.check()
        self.waiting.check()
        holders: Counter[int] = Counter()
        for sequence_id, request in [*self.prefills.items(), *self.decodes.items()]:
            holders.update(request.block_table)
            self._check_running(sequence_id, request)
        for block_id in range(self.pool.num_blocks):
            if self.pool.ref_count(block_id) != holders[block_id]:
                raise AssertionError(f"block {block_id} is in {holders[block_id]} block tables")
        if self.growth_blocks != sum(r.growth_blocks for r in self.running()):
            raise AssertionError("growth_blocks is not the sum over running sequences")
        if self.num_running > self.max_num_seqs or len(self.in_flight) > MAX_STEPS_IN_FLIGHT:
            raise AssertionError("more sequences or steps than allowed")
        pending = Counter(
            request
            for step in self.in_flight
            for sequence_id, request in step.samplers.items()
            if request.sequence_id == sequence_id
        )
        for request in [*self.running(), *self.evicted.values()]:
            if request.num_pending_tokens != pending[request]:
                raise AssertionError(f"{request.request_id} awaits samples nobody takes")

    def _check_running(self, sequence_id: int, request: Request) -> None:
        held = -(-request.num_computed_tokens // self.block_size)
        decode = sequence_id in self.decodes
        if (
            request.status is not RequestStatus.RUNNING
            or request.sequence_id != sequence_id
            or request.worker != self.worker
            or len(request.block_table) != held
            or (decode and request.num_uncomputed_tokens != 1)
            or (not decode and request.num_pending_tokens)
            or len(request.token_ids) + request.num_pending_tokens > request.max_total_tokens
        ):
            raise AssertionError(f"{request.request_id} is not what runs as {sequence_id}")


def unusable(join: WorkerJoin, others: Collection[Replica]) -> str | None:
    """Why a worker that joins cannot serve beside the others; None if it can."""
    for name in CLAIMS:
        value = getattr(join, name)
        if not 1 <= value <= MAX_CLAIM:
            return f"{name} is {value}, it must be between 1 and {MAX_CLAIM}"
    for other in others:
        if (join.model, join.vocab_size) != (other.join.model, other.join.vocab_size):
            return (
                f"it serves {join.model} with {join.vocab_size} tokens, the workers here serve "
                f"{other.join.model} with {other.join.vocab_size}"
            )
    return None


def backlog(replica: Replica, *, in_ms: bool, more: int = 0, more_attended: int = 0) -> float:
    """How much work is ahead of the last prompt here, decodes beside it included.

    Args:
        in_ms: predicted milliseconds; else tokens.
        more: tokens to be added, or left out if negative.
        more_attended: how many tokens these attend to, summed up.
    """
    tokens = replica.waiting.num_tokens + more
    attended = replica.waiting.num_attended + more_attended
    for request in replica.prefills.values():
        tokens += request.num_uncomputed_tokens
        attended += num_attended(request.num_computed_tokens, request.num_uncomputed_tokens)
    if not in_ms:
        return tokens + len(replica.decodes)
    budget = replica.budget
    room = max(MIN_PROMPT_TOKENS, budget.prompt_tokens - len(replica.decodes))
    return prompts_ms(budget.model, tokens, attended, room, replica.decodes_shape())


class Replicas:
    """All attached workers, by instance id, in the order in which they joined."""

    def __init__(self) -> None:
        self._replicas: dict[str, Replica] = {}

    def __len__(self) -> int:
        return len(self._replicas)

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas.values())

    def __getitem__(self, worker: str) -> Replica:
        return self._replicas[worker]

    def get(self, worker: str) -> Replica | None:
        return self._replicas.get(worker)

    def add(self, replica: Replica) -> None:
        self._replicas[replica.worker] = replica

    def remove(self, worker: str) -> None:
        del self._replicas[worker]

    def accepting(self) -> list[Replica]:
        """Workers that take requests."""
        return [replica for replica in self if not replica.draining]

    def limits(self) -> Limits | None:
        """What any of the workers can serve; None while there are none."""
        replicas = self.accepting() or list(self)
        if not replicas:
            return None
        return Limits(
            model=replicas[0].join.model,
            max_model_len=min(r.join.max_model_len for r in replicas),
            kv_capacity_tokens=min(r.join.num_blocks * r.block_size for r in replicas),
            vocab_size=replicas[0].join.vocab_size,
        )

    def place(self, request: Request) -> Replica | None:
        """The worker that would come to the end of the request's prompt first.

        None if no worker that takes requests is big enough for it.
        """
        roomy = [r for r in self.accepting() if len(request.token_ids) < r.length_limit]
        if len(roomy) < 2:
            return roomy[0] if roomy else None
        in_ms = self._are_known
        return min(roomy, key=lambda r: (_end_of(r, request, in_ms=in_ms), r.num_running))

    def steal(self, thief: Replica) -> Request | None:
        """Move the first request of the longest queue to a worker that has none waiting.

        Only if it is better off there, counting the prefix that the other worker has cached.
        """
        donors = [r for r in self if r is not thief and len(r.waiting)]
        if not donors or thief.draining:
            return None
        in_ms = self._are_known
        donor = max(donors, key=lambda r: backlog(r, in_ms=in_ms))
        request = donor.waiting.peek()
        if request is None or len(request.token_ids) >= thief.length_limit:
            return None
        if _end_of(thief, request, in_ms=in_ms) >= _end_of(donor, request, in_ms=in_ms):
            return None
        donor.waiting.remove(request)
        request.worker = thief.worker
        thief.waiting.push(request)
        return request

    @property
    def _are_known(self) -> bool:
        """Whether time can be predicted on all workers; else tokens are compared."""
        return all(replica.budget.is_known for replica in self)


def _end_of(replica: Replica, request: Request, *, in_ms: bool) -> float:
    """Work until the request has its first token here; all that waits here is ahead of it."""
    cached = len(replica.cached_blocks(request)) * replica.block_size
    if request in replica.waiting:
        return backlog(replica, in_ms=in_ms, more=-cached, more_attended=-num_attended(0, cached))
    uncached = len(request.token_ids) - cached
    return backlog(
        replica, in_ms=in_ms, more=uncached, more_attended=num_attended(cached, uncached)
    )
