"""Thousands of random events in regimes that each press on one thing."""

import random
from dataclasses import dataclass

import pytest

from services.scheduler.policies import PolicyName
from services.scheduler.splitfuse import Partition
from tests.support.checking_worker import VOCAB_SIZE, CheckingWorker
from tests.support.scheduler_mesh import Client, SchedulerMesh, a_request, options


@dataclass(frozen=True)
class Regime:
    num_events: int = 2000
    num_blocks: int = 60
    block_size: int = 4
    max_num_seqs: int = 8
    token_budget: int = 16
    policy: PolicyName = "splitfuse"
    partition: Partition | None = None
    max_prompt: int = 40
    max_tokens: int = 20
    num_workers: int = 1
    surprises: bool = False  # outputs are short for a while, then long, and again
    arrive: int = 2  # weights of what happens next
    run: int = 8
    cancel: int = 0
    reject: int = 0
    lose: int = 0


def play(regime: Regime, seed: int) -> SchedulerMesh:
    """Let fate roll its dice, then wait until everything has ended."""
    rng = random.Random(seed)
    mesh = SchedulerMesh(
        options(
            token_budget=regime.token_budget,
            policy=regime.policy,
            partition=regime.partition,
            max_num_seqs=16,
        )
    )
    for index in range(regime.num_workers):
        mesh.join(f"w{index}", make_worker(regime))
    names = ("arrive", "run", "cancel", "reject", "lose")
    weights = [getattr(regime, name) for name in names]
    for number, event in enumerate(rng.choices(names, weights, k=regime.num_events)):
        happen(event, mesh, regime, rng, number)
    mesh.run_until_idle(max_turns=100_000)
    mesh.check_ended()
    return mesh


def make_worker(regime: Regime) -> CheckingWorker:
    return CheckingWorker(
        num_blocks=regime.num_blocks,
        block_size=regime.block_size,
        max_num_seqs=regime.max_num_seqs,
        max_model_len=regime.max_prompt + regime.max_tokens,
    )


def happen(
    event: str, mesh: SchedulerMesh, regime: Regime, rng: random.Random, number: int
) -> None:
    name = rng.choice(sorted(mesh.workers))
    if event == "arrive":
        system = [1, 2, 3, 5, 8, 13, 21, 34][: rng.choice((0, 0, 4, 8))]
        length = rng.randint(1, regime.max_prompt - len(system))
        prompt = system + [rng.randrange(VOCAB_SIZE) for _ in range(length)]
        max_tokens = rng.randint(1, regime.max_tokens)
        if regime.surprises and number % 400 < 300:
            max_tokens = 1  # admission comes to expect short outputs
        eos = rng.random() < 0.5
        mesh.arrive(a_request(f"r{number}", prompt, max_tokens=max_tokens, eos=eos, seed=number))
    elif event == "run":
        mesh.run_step(name)
    elif event == "cancel" and (alive := [k for k, c in mesh.clients.items() if not c.over]):
        owner, request_id = rng.choice(alive)
        mesh.cancel(request_id, owner)
    elif event == "reject" and mesh.workers[name].plans:
        mesh.reject_step(name)
    elif event == "lose":
        mesh.lose(name)
        mesh.join(f"w{number}", make_worker(regime))


def check_outputs(mesh: SchedulerMesh, regime: Regime) -> None:
    for client in mesh.clients.values():
        client.check_output(regime.max_prompt + regime.max_tokens)


def succeeded(mesh: SchedulerMesh) -> list[Client]:
    return [client for client in mesh.clients.values() if client.finish_reason]


@pytest.mark.parametrize("seed", range(4))
def test_a_tiny_cache_preempts_and_loses_nothing(seed: int) -> None:
    regime = Regime(num_blocks=18, max_prompt=20, max_tokens=50, arrive=1, run=6, surprises=True)

    mesh = play(regime, seed)

    check_outputs(mesh, regime)
    assert len(succeeded(mesh)) == len(mesh.clients)
    assert mesh.core.stats.num_preemptions > 0
    assert mesh.core.stats.num_cache_hit_tokens > 0


@pytest.mark.parametrize("seed", range(4))
def test_several_workers_that_come_and_go_leave_every_output_as_it_was(seed: int) -> None:
    regime = Regime(num_workers=3, cancel=1, reject=1, lose=1, arrive=6, run=40)

    mesh = play(regime, seed)

    check_outputs(mesh, regime)
    stats = mesh.core.stats
    assert min(stats.num_lost_workers, stats.num_refused_steps, stats.num_cancelled) > 0


@pytest.mark.parametrize("partition", ["greedy", "balanced"])
def test_under_a_backlog_passes_carry_exactly_the_budget(partition: Partition) -> None:
    regime = Regime(
        num_events=900,
        num_blocks=2000,
        token_budget=37,
        max_num_seqs=32,
        max_prompt=120,
        arrive=1,
        run=1,  # so that a prompt is seldom alone, to be cut evenly
        partition=partition,
    )

    mesh = play(regime, seed=5)

    stats = mesh.core.stats
    assert all(sum(c.num_tokens for c in plan.chunks) <= 37 for plan in mesh.sent)
    assert stats.num_backlog_steps > 300
    assert stats.num_full_backlog_steps >= 0.95 * stats.num_backlog_steps


@pytest.mark.parametrize("policy", ["splitfuse", "prefill-first", "orca"])
@pytest.mark.parametrize("num_blocks", [18, 60])
def test_under_every_policy_all_requests_end_with_their_own_tokens(
    policy: PolicyName, num_blocks: int
) -> None:
    regime = Regime(
        policy=policy, num_blocks=num_blocks, max_prompt=40, max_tokens=30, arrive=2, run=6
    )

    mesh = play(regime, seed=11)

    check_outputs(mesh, regime)
    assert len(succeeded(mesh)) == len(mesh.clients)


def test_prefill_first_never_mixes_and_only_waits_while_prompts_start() -> None:
    mesh = play(Regime(policy="prefill-first", num_blocks=30, arrive=1, run=6), seed=3)

    for plan in mesh.sent:
        starts = {new.sequence_id for new in plan.new_sequences}
        assert {chunk.sequence_id for chunk in plan.chunks} == starts or not starts


def test_orca_never_cuts_a_prompt() -> None:
    mesh = play(Regime(policy="orca", num_blocks=30, arrive=1, run=6), seed=3)

    assert all(chunk.sample for plan in mesh.sent for chunk in plan.chunks)
