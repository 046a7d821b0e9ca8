"""Whatever happens to the scheduler core, nothing is lost, repeated, leaked or starved."""

import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common.errors import FailureCode
from common.messages import SampledToken, StepRejected, StepResult, WorkerJoin
from common.token_ids import unpack_ids
from services.scheduler.events import (
    LiveRequestsListed,
    OwnerLost,
    RequestCancelled,
    StepFinished,
    StepRefused,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from services.scheduler.policies import PolicyName
from tests.support.checking_worker import VOCAB_SIZE, CheckingWorker, completion
from tests.support.scheduler_mesh import Client, SchedulerMesh, a_request, options

OWNERS = ("gold", "blue")
WORKERS = ("w0", "w1", "w2")
MAX_MODEL_LEN = 64
SMALLEST_LIMIT = 48  # tokens; 16 blocks of 3
# Few distinct prompts, so that prefixes are often shared.
SEEDS_OF_PROMPTS = st.integers(0, 3)


def make_prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, VOCAB_SIZE) for _ in range(length)]


class SchedulerMachine(RuleBasedStateMachine):
    """Fate, in hypothesis' hands: it shrinks what goes wrong to the shortest story."""

    policy: PolicyName = "splitfuse"

    def __init__(self) -> None:
        super().__init__()
        self.mesh = SchedulerMesh(options(token_budget=11, max_num_seqs=5, policy=self.policy))
        self.count = 0

    @rule(
        owner=st.sampled_from(OWNERS),
        seed=SEEDS_OF_PROMPTS,
        length=st.integers(1, 60),
        max_tokens=st.integers(1, 60),
        eos=st.booleans(),
        min_tokens=st.integers(0, 5),
        priority=st.integers(0, 1),
        stream_interval=st.sampled_from([1, 1, 3, 16]),
    )
    def arrive(
        self,
        owner: str,
        seed: int,
        length: int,
        max_tokens: int,
        eos: bool,
        min_tokens: int,
        priority: int,
        stream_interval: int,
    ) -> None:
        self.count += 1
        message = a_request(
            f"r{self.count}",
            make_prompt(seed, length),
            max_tokens=max_tokens,
            eos=eos,
            min_tokens=min_tokens,
            seed=seed,
            priority=priority,
            tenant="ab"[seed % 2],
            stream_interval=stream_interval,
        )
        self.mesh.arrive(message, owner)

    @rule(worker=st.sampled_from(WORKERS), steps=st.integers(1, 40))
    def run_steps(self, worker: str, steps: int) -> None:
        for _ in range(steps):
            if worker in self.mesh.workers:
                self.mesh.run_step(worker)

    @rule(worker=st.sampled_from(WORKERS))
    def fault(self, worker: str) -> None:
        if worker in self.mesh.workers:
            self.mesh.run_step(worker, faulty=True)

    @rule(worker=st.sampled_from(WORKERS))
    def reject(self, worker: str) -> None:
        if worker in self.mesh.workers and self.mesh.workers[worker].plans:
            self.mesh.reject_step(worker)

    @rule(
        worker=st.sampled_from(WORKERS),
        num_blocks=st.integers(16, 30),
        size=st.sampled_from([3, 4]),
        group=st.integers(1, 5),
    )
    def join(self, worker: str, num_blocks: int, size: int, group: int) -> None:
        """Of a worker that is there already: it has started afresh."""
        fresh = CheckingWorker(
            num_blocks=num_blocks, block_size=size, blocks_per_group=group, max_num_seqs=4
        )
        self.mesh.join(worker, fresh)

    @rule(worker=st.sampled_from(WORKERS))
    def lose(self, worker: str) -> None:
        if worker in self.mesh.workers:
            self.mesh.lose(worker)

    @rule(worker=st.sampled_from(WORKERS))
    def drain(self, worker: str) -> None:
        self.mesh.handle(WorkerDraining(worker))

    @precondition(lambda self: self.mesh.clients)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        owner, request_id = data.draw(st.sampled_from(sorted(self.mesh.clients)))
        self.mesh.cancel(request_id, owner)

    @precondition(lambda self: self.mesh.clients)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        """The tokenizer has died, or thinks that we have: it goes on behind what it has."""
        owner, request_id = data.draw(st.sampled_from(sorted(self.mesh.clients)))
        self.send_again_what_is_open(owner, request_id)

    def send_again_what_is_open(self, owner: str, request_id: str) -> None:
        client = self.mesh.clients[owner, request_id]
        if client.over:
            return
        sampling = client.message.sampling
        message = a_request(
            request_id,
            unpack_ids(client.message.prompt_ids),
            output=client.output,
            max_tokens=sampling.max_tokens,
            eos=not sampling.ignore_eos,
            min_tokens=sampling.min_tokens,
            seed=sampling.seed,
            tenant=client.message.tenant,
        )
        self.mesh.arrive(message, owner)

    @rule(owner=st.sampled_from(OWNERS))
    def lose_owner(self, owner: str) -> None:
        self.mesh.handle(OwnerLost(owner))
        for (of, _), client in self.mesh.clients.items():
            client.cancelled = client.cancelled or of == owner

    @rule(owner=st.sampled_from(OWNERS), data=st.data())
    def audit(self, owner: str, data: st.DataObject) -> None:
        mine = {r: c for (o, r), c in self.mesh.clients.items() if o == owner and not c.over}
        listed = data.draw(st.lists(st.sampled_from([*sorted(mine), "ghost"]), max_size=6))
        self.mesh.handle(LiveRequestsListed(owner, tuple(listed)))
        for request_id, client in mine.items():
            client.cancelled = request_id not in listed

    @rule(
        worker=st.sampled_from([*WORKERS, "nobody"]),
        number=st.integers(-1, 40),
        kind=st.integers(0, 4),
    )
    def nonsense(self, worker: str, number: int, kind: int) -> None:
        """What a peer in the wrong, or one that was given up, may send."""
        plans = self.mesh.workers[worker].plans if worker in self.mesh.workers else ()
        in_flight = any(plan.step_id == number for plan in plans)
        if kind == 0 and not in_flight:
            result = StepResult(number, (SampledToken(number, number * 7919),), -5)
            self.mesh.handle(StepFinished(worker, result))
        elif kind == 1 and not in_flight:
            self.mesh.handle(StepRefused(worker, StepRejected(number, "?", (number,))))
        elif kind == 2:
            join = WorkerJoin("fake", "cpu", "x", "y", min(number, 0), 4, 64, 97, 4)
            self.mesh.handle(WorkerJoined("nobody", join))
        elif kind == 3:
            self.mesh.handle(WorkerLost("nobody"))
            self.mesh.handle(RequestCancelled("nobody", "r1", "deadline"))
        else:
            self.mesh.handle(Tick())

    @invariant()
    def every_client_has_what_it_would_have_without_all_this(self) -> None:
        for client in self.mesh.clients.values():
            check_client(client)

    @rule()
    def settle(self) -> None:
        """When fate rests, everything that is open comes to its end."""
        self.mesh.join("last", CheckingWorker(num_blocks=30))
        self.mesh.run_until_idle()
        self.mesh.check_ended()


def check_client(client: Client) -> None:
    """What came so far begins an undisturbed output; an end has a reason."""
    prompt, sampling = unpack_ids(client.message.prompt_ids), client.message.sampling
    whole = completion(list(prompt), sampling, MAX_MODEL_LEN)
    assert client.output == whole[: len(client.output)]
    if client.finish_reason == "stop":
        assert client.output == whole
    elif client.finish_reason == "length":
        num_tokens = len(prompt) + len(client.output)
        assert len(client.output) == sampling.max_tokens or num_tokens >= SMALLEST_LIMIT
    elif client.failure == FailureCode.KV_CACHE_EXCEEDED:
        assert len(prompt) >= SMALLEST_LIMIT
    elif client.failure is not None:
        assert client.failure == FailureCode.INTERNAL


class PrefillFirstMachine(SchedulerMachine):
    policy = "prefill-first"


class OrcaMachine(SchedulerMachine):
    policy = "orca"


def settings_of(max_examples: int) -> settings:
    return settings(
        max_examples=max_examples,
        stateful_step_count=60,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


TestSchedulerCore = SchedulerMachine.TestCase
TestSchedulerCore.settings = settings_of(60)
TestPrefillFirst = PrefillFirstMachine.TestCase
TestPrefillFirst.settings = settings_of(20)
TestOrca = OrcaMachine.TestCase
TestOrca.settings = settings_of(20)
