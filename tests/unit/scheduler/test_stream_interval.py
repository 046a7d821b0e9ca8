"""Tokens that are told together: fewer deltas, none lost, and nobody waits without need."""

import pytest

from common.errors import FailureCode
from common.messages import SampledToken, StepResult, TokenDelta, TokenLogprob
from common.token_ids import num_ids
from services.scheduler.events import EmitTokens, Instruction, StepFinished
from tests.support.checking_worker import CheckingWorker
from tests.support.scheduler_mesh import SchedulerMesh, a_request, options

PROMPT = [11, 7, 5, 3, 2]


def deltas_of(instructions: list[Instruction]) -> list[TokenDelta]:
    return [
        delta
        for instruction in instructions
        if isinstance(instruction, EmitTokens)
        for delta in instruction.message.deltas
    ]


def step(mesh: SchedulerMesh) -> list[TokenDelta]:
    """Run the oldest plan; returns what was told."""
    result = mesh.workers["w"].run()
    assert isinstance(result, StepResult)
    return deltas_of(mesh.handle(StepFinished("w", result)))


def test_all_tokens_come_the_first_one_and_the_last_at_once(mesh: SchedulerMesh) -> None:
    client = mesh.arrive(a_request("r", PROMPT, max_tokens=23, stream_interval=4))

    sizes = [num_ids(delta.token_ids) for _ in range(23) for delta in step(mesh)]

    client.check_output(length_limit=64)
    assert (sizes[0], sum(sizes), max(sizes)) == (1, 23, 4)
    assert len(sizes) == 7
    mesh.check_ended()


def test_requests_of_one_worker_are_told_at_the_same_steps(mesh: SchedulerMesh) -> None:
    for number in range(3):
        mesh.arrive(a_request(f"r{number}", PROMPT, max_tokens=40, stream_interval=4))
        step(mesh)
    for _ in range(2):
        step(mesh)  # the steps planned before the last one came, and its first token

    told = [len(step(mesh)) for _ in range(16)]

    assert sorted(set(told)) == [0, 3]
    assert told.count(3) == 4


def test_who_wants_each_token_gets_it_beside_one_who_does_not(mesh: SchedulerMesh) -> None:
    fine = mesh.arrive(a_request("fine", PROMPT, max_tokens=20))
    coarse = mesh.arrive(a_request("coarse", PROMPT, max_tokens=20, stream_interval=16))

    lengths = []
    for _ in range(12):
        step(mesh)
        lengths.append((len(fine.output), len(coarse.output)))

    assert [fine for fine, _ in lengths] == list(range(1, 13))
    assert {coarse for _, coarse in lengths} == {0, 1}


def test_a_request_that_is_not_in_the_steps_of_telling_waits_no_longer() -> None:
    """Every other step is a prompt's, in which nothing is generated: its own tokens count, too."""
    mesh = SchedulerMesh(options(policy="prefill-first"))
    mesh.join("w")
    client = mesh.arrive(a_request("r", PROMPT, max_tokens=13, stream_interval=2))
    step(mesh)

    sizes = []
    for number in range(12):
        mesh.arrive(a_request(f"other{number}", [20 + number], max_tokens=1))
        for _ in range(2):
            sizes += [num_ids(d.token_ids) for d in step(mesh) if d.request_id == "r"]

    client.check_output(length_limit=64)
    assert (max(sizes), sum(sizes)) == (2, 12)


def test_log_probabilities_come_with_their_tokens(mesh: SchedulerMesh) -> None:
    mesh.arrive(a_request("r", PROMPT, max_tokens=9, stream_interval=4))
    told: list[TokenDelta] = []

    for number in range(9):
        plan = mesh.workers["w"].plans.popleft()
        sampled = SampledToken(plan.chunks[0].sequence_id, 5, TokenLogprob(5, -float(number)))
        told += deltas_of(mesh.handle(StepFinished("w", StepResult(plan.step_id, (sampled,), 1))))

    assert all(len(delta.logprobs) == num_ids(delta.token_ids) for delta in told)
    assert [p.logprob for delta in told for p in delta.logprobs] == [-float(n) for n in range(9)]
    assert len(told) < 9


def test_tokens_known_when_a_worker_is_lost_do_not_wait_for_another(mesh: SchedulerMesh) -> None:
    client = mesh.arrive(a_request("r", PROMPT, max_tokens=30, stream_interval=16))
    for _ in range(6):
        step(mesh)
    assert len(client.output) == 1

    mesh.lose("w")

    assert len(client.output) == 6
    mesh.join("w")
    mesh.run_until_idle()
    client.check_output(length_limit=64)
    mesh.check_ended()


def test_tokens_known_when_a_request_fails_are_told_before(mesh: SchedulerMesh) -> None:
    client = mesh.arrive(a_request("r", PROMPT, max_tokens=30, stream_interval=16))
    for _ in range(6):
        step(mesh)

    mesh.answer("w", faulty=True)

    assert client.failure == FailureCode.INTERNAL
    assert len(client.output) == 6


def test_preempted_requests_are_told_what_is_known() -> None:
    mesh = SchedulerMesh()
    mesh.join("w", CheckingWorker(num_blocks=16))
    clients = [
        mesh.arrive(a_request(f"r{n}", [n + 1] * 7, max_tokens=40, stream_interval=16))
        for n in range(3)
    ]

    mesh.run_until_idle()

    assert mesh.core.stats.num_preemptions
    for client in clients:
        client.check_output(length_limit=64)
    mesh.check_ended()


def test_a_resumed_request_goes_on_behind_what_its_owner_has(mesh: SchedulerMesh) -> None:
    first = mesh.arrive(a_request("r", PROMPT, max_tokens=20, stream_interval=8))
    for _ in range(11):
        step(mesh)
    has = list(first.output)
    assert 0 < len(has) < 11

    again = mesh.arrive(a_request("r", PROMPT, max_tokens=20, output=has, stream_interval=8))
    mesh.run_until_idle()

    again.check_output(length_limit=64)


@pytest.mark.parametrize("interval", [0, -3])
def test_an_interval_without_a_token_is_refused(mesh: SchedulerMesh, interval: int) -> None:
    client = mesh.arrive(a_request("r", PROMPT, stream_interval=interval))

    assert client.failure == FailureCode.INVALID_REQUEST
    assert client.failure_message == f"stream_interval is {interval}, must be at least 1."
