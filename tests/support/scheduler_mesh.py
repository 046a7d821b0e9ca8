"""A whole mesh around a scheduler core, in memory and on a clock of its own.

The test plays fate: it lets requests arrive, workers run, fail, join and leave. The mesh plays the
rest, checks the core's invariants after every event, and keeps what each client has received.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from common.messages import (
    GenerateRequest,
    Heartbeat,
    SamplingParams,
    StepPlan,
    StepRejected,
    TokenDelta,
)
from common.token_ids import pack_ids, unpack_ids
from services.scheduler.core import CoreOptions, SchedulerCore
from services.scheduler.cost_model import StepShape
from services.scheduler.events import (
    EmitTokens,
    Event,
    FailRequest,
    Instruction,
    RefuseWorker,
    ReportUnknown,
    RequestArrived,
    RequestCancelled,
    SendStep,
    StatusChanged,
    StepFinished,
    StepRefused,
    WorkerJoined,
    WorkerLost,
)
from services.scheduler.policies import PolicyName, make_policy
from services.scheduler.splitfuse import Partition
from tests.support.checking_worker import EOS, CheckingWorker, completion

TENANT = "t"


def options(
    *,
    token_budget: int | None = 16,
    policy: PolicyName = "splitfuse",
    partition: Partition | None = None,
    max_num_seqs: int = 8,
    max_queued_tokens: int | None = None,
    caching: bool = True,
    target_tbt_ms: float | None = None,
    target_ttft_ms: float | None = None,
) -> CoreOptions:
    return CoreOptions(
        policy=make_policy(policy, partition),
        token_budget=token_budget,
        max_num_seqs=max_num_seqs,
        max_queued_tokens=max_queued_tokens,
        caching=caching,
        target_tbt_ms=target_tbt_ms,
        target_ttft_ms=target_ttft_ms,
    )


def a_request(
    request_id: str,
    prompt: Sequence[int],
    *,
    max_tokens: int | None = 8,
    output: Sequence[int] = (),
    eos: bool = False,
    min_tokens: int = 0,
    seed: int = 7,
    priority: int = 0,
    tenant: str = TENANT,
    target_tbt_ms: float | None = None,
    stream_interval: int = 1,
) -> GenerateRequest:
    """A request; without `eos` only its length ends it."""
    sampling = SamplingParams(
        seed=seed,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        ignore_eos=not eos,
        stop_token_ids=(EOS,) if eos else (),
    )
    return GenerateRequest(
        request_id,
        pack_ids(prompt),
        sampling,
        pack_ids(output),
        priority,
        tenant,
        target_tbt_ms,
        stream_interval,
    )


def shape_of(plan: StepPlan) -> StepShape:
    """What is in a plan, token by token."""
    ends = [chunk.num_computed_tokens + chunk.num_tokens for chunk in plan.chunks]
    return StepShape(
        num_tokens=sum(chunk.num_tokens for chunk in plan.chunks),
        num_context_tokens=sum(ends),
        num_attended_tokens=sum(
            position + 1
            for chunk in plan.chunks
            for position in range(
                chunk.num_computed_tokens, chunk.num_computed_tokens + chunk.num_tokens
            )
        ),
        num_sequences=len(plan.chunks),
        num_logits=sum(chunk.sample for chunk in plan.chunks),
    )


@dataclass
class Client:
    """What the tokenizer knows of one request."""

    message: GenerateRequest
    output: list[int]
    finish_reason: str | None = None
    failure: str | None = None  # code
    failure_message: str = ""
    cancelled: bool = False
    num_cached_tokens: int = 0

    @property
    def over(self) -> bool:
        return bool(self.finish_reason or self.failure or self.cancelled)

    def receive(self, delta: TokenDelta) -> None:
        assert not self.over, "a delta after the end"
        assert delta.num_output_tokens == len(self.output), "a token lost or repeated"
        self.output += unpack_ids(delta.token_ids)
        self.finish_reason = delta.finish_reason
        self.num_cached_tokens = delta.num_cached_tokens

    def check_output(self, length_limit: int) -> None:
        """A finished request has exactly the tokens of an undisturbed one."""
        if self.finish_reason is None:
            return
        sampling = self.message.sampling
        prompt = list(unpack_ids(self.message.prompt_ids))
        expected = completion(prompt, sampling, length_limit)
        assert self.output == expected
        stopped = expected[-1] in sampling.stop_token_ids and len(expected) > sampling.min_tokens
        assert self.finish_reason == ("stop" if stopped else "length")


@dataclass
class SchedulerMesh:
    """One core, its workers, and one owner per name that is used."""

    core_options: CoreOptions = field(default_factory=options)
    workers: dict[str, CheckingWorker] = field(default_factory=dict)
    clients: dict[tuple[str, str], Client] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    sent: list[StepPlan] = field(default_factory=list)
    queue_times_s: list[float] = field(default_factory=list)
    status: Heartbeat = field(default_factory=lambda: Heartbeat(ready=False, draining=False))
    now: float = 0.0

    def __post_init__(self) -> None:
        self.core = SchedulerCore(self.core_options)

    def handle(self, event: Event) -> list[Instruction]:
        """Give the core an event, carry out what it wants, check it."""
        self.now += 0.001
        instructions = self.core.handle(event, self.now)
        self.core.check()
        for instruction in instructions:
            match instruction:
                case SendStep(worker, plan, shape, queue_times_s):
                    self.queue_times_s += queue_times_s
                    assert shape == shape_of(plan)
                    if plan.chunks:  # else it only lets an idle worker forget
                        self.sent.append(plan)
                    self.workers[worker].send(plan)
                case EmitTokens(owner, message):
                    for delta in message.deltas:
                        self.clients[owner, delta.request_id].receive(delta)
                case FailRequest(owner, failure):
                    client = self.clients[owner, failure.request_id]
                    assert not client.over, "a failure after the end"
                    client.failure, client.failure_message = failure.code, failure.message
                case ReportUnknown(_, request_ids):
                    self.unknown += request_ids
                case RefuseWorker(_, reason):
                    self.refused.append(reason)
                case StatusChanged(status):
                    self.status = status
        return instructions

    def join(self, name: str = "w", worker: CheckingWorker | None = None) -> CheckingWorker:
        worker = worker or CheckingWorker()
        self.workers[name] = worker
        self.handle(WorkerJoined(name, worker.join))
        return worker

    def lose(self, name: str = "w") -> None:
        del self.workers[name]
        self.handle(WorkerLost(name))

    def arrive(self, message: GenerateRequest, owner: str = "o") -> Client:
        client = Client(message, list(unpack_ids(message.output_ids)))
        self.clients[owner, message.request_id] = client
        self.handle(RequestArrived(owner, message))
        return client

    def cancel(self, request_id: str, owner: str = "o") -> None:
        self.clients[owner, request_id].cancelled = True
        self.handle(RequestCancelled(owner, request_id, "client_disconnected"))

    def run_step(self, name: str = "w", faulty: bool = False) -> bool:
        """Let the worker run its oldest plan; False if it has none."""
        if not self.workers[name].plans:
            return False
        self.answer(name, faulty)
        return True

    def answer(self, name: str, faulty: bool = False) -> None:
        result = self.workers[name].run(faulty)
        if isinstance(result, StepRejected):
            self.handle(StepRefused(name, result))
        else:
            self.now += result.step_ns / 1e9
            self.handle(StepFinished(name, result))

    def reject_step(self, name: str = "w") -> None:
        self.handle(StepRefused(name, self.workers[name].reject()))

    def run_until_idle(self, max_turns: int = 10_000) -> int:
        """Let all workers run in turns until nothing is planned; returns the number of turns."""
        num_turns = 0
        while sum(self.run_step(name) for name in list(self.workers)):
            num_turns += 1
            assert num_turns < max_turns, "no end"
        return num_turns

    def check_ended(self) -> None:
        """Everything is over, each request exactly once, and no memory is held."""
        assert self.core.num_requests == 0
        assert all(client.over for client in self.clients.values())
        assert self.core.stats.kv_usage == 0
