"""The life of requests and workers at the core, seen from outside."""

import pytest

from common.errors import FailureCode
from common.messages import (
    GenerateRequest,
    SampledToken,
    SamplingParams,
    SequenceFault,
    StepRejected,
    StepResult,
    TokenLogprob,
)
from common.token_ids import pack_ids
from services.scheduler.core import MAX_REJECTIONS, MAX_WORKER_LOSSES
from services.scheduler.events import (
    EmitTokens,
    LiveRequestsListed,
    OwnerLost,
    RequestArrived,
    RequestCancelled,
    SendStep,
    StatusChanged,
    StepFinished,
    StepRefused,
    Tick,
    WorkerDraining,
    WorkerLost,
)
from tests.support.checking_worker import EOS, VOCAB_SIZE, CheckingWorker, completion
from tests.support.scheduler_mesh import Client, SchedulerMesh, a_request, options

PROMPT = [11, 7, 5, 3, 2]


def stopping_seed(prompt: list[int], longest: int = 20) -> int:
    """A seed for which the fake model says EOS after some tokens, before `longest`."""
    return next(
        seed for seed in range(1000) if 3 < len(completion(prompt, eos_params(seed), 64)) < longest
    )


def eos_params(seed: int) -> SamplingParams:
    return SamplingParams(seed=seed, max_tokens=50, stop_token_ids=(EOS,))


def result(mesh: SchedulerMesh, token_id: int, logprob: TokenLogprob | None = None) -> StepResult:
    """An answer to the oldest plan, made up by the test."""
    plan = mesh.workers["w"].plans.popleft()
    samples = (SampledToken(c.sequence_id, token_id, logprob) for c in plan.chunks if c.sample)
    return StepResult(plan.step_id, tuple(samples), 1)


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────


def test_a_request_gets_its_tokens_and_ends_by_its_length(mesh: SchedulerMesh) -> None:
    client = mesh.arrive(a_request("r", PROMPT, max_tokens=9))

    mesh.run_until_idle()

    client.check_output(length_limit=64)
    assert (len(client.output), client.finish_reason) == (9, "length")
    mesh.check_ended()


def test_a_stop_token_is_the_last_one_and_what_is_sampled_behind_it_is_dropped(
    mesh: SchedulerMesh,
) -> None:
    seed = stopping_seed(PROMPT)
    client = mesh.arrive(a_request("r", PROMPT, max_tokens=50, eos=True, seed=seed))

    mesh.run_until_idle()

    client.check_output(length_limit=64)
    assert (client.output[-1], client.finish_reason) == (EOS, "stop")
    samples = sum(chunk.sample for plan in mesh.sent for chunk in plan.chunks)
    assert samples == len(client.output) + 1


def test_the_delta_names_the_stop_token(mesh: SchedulerMesh) -> None:
    mesh.arrive(a_request("r", PROMPT, max_tokens=50, eos=True))

    instructions = mesh.core.handle(StepFinished("w", result(mesh, EOS)), 1.0)

    (emit,) = [i for i in instructions if isinstance(i, EmitTokens)]
    (delta,) = emit.message.deltas
    assert (delta.stop_token_id, delta.finish_reason, delta.num_output_tokens) == (EOS, "stop", 0)
    assert delta.token_ids == pack_ids([EOS])


def test_a_stop_token_does_not_end_a_request_before_min_tokens(mesh: SchedulerMesh) -> None:
    client = mesh.arrive(a_request("r", PROMPT, max_tokens=50, eos=True, min_tokens=2))

    for _ in range(3):
        assert client.finish_reason is None
        mesh.handle(StepFinished("w", result(mesh, EOS)))

    assert (client.output, client.finish_reason) == ([EOS] * 3, "stop")


def test_one_message_per_owner_and_step_holds_all_deltas(mesh: SchedulerMesh) -> None:
    for number in range(4):
        mesh.arrive(a_request(f"r{number}", [number], max_tokens=4), owner=f"o{number % 2}")
    mesh.run_step()
    mesh.run_step()

    instructions = mesh.core.handle(StepFinished("w", result(mesh, 1)), 1.0)

    assert isinstance(instructions[0], SendStep)
    emits = [i for i in instructions if isinstance(i, EmitTokens)]
    assert {e.owner: len(e.message.deltas) for e in emits} == {"o0": 2, "o1": 2}


def test_logprobs_are_passed_on(mesh: SchedulerMesh) -> None:
    logprob = TokenLogprob(5, -0.25, ((5, -0.25), (6, -2.0)))
    mesh.arrive(a_request("r", PROMPT))

    instructions = mesh.core.handle(StepFinished("w", result(mesh, 5, logprob)), 1.0)

    (emit,) = [i for i in instructions if isinstance(i, EmitTokens)]
    assert emit.message.deltas[0].logprobs == (logprob,)


def test_a_request_without_max_tokens_ends_at_the_models_length(mesh: SchedulerMesh) -> None:
    client = mesh.arrive(a_request("r", PROMPT, max_tokens=None))

    mesh.run_until_idle()

    assert len(PROMPT) + len(client.output) == 64
    assert client.finish_reason == "length"


def test_a_request_ends_where_the_kv_cache_does() -> None:
    mesh = SchedulerMesh()
    mesh.join("w", CheckingWorker(num_blocks=5, block_size=4))
    client = mesh.arrive(a_request("r", PROMPT, max_tokens=50))

    mesh.run_until_idle()

    assert (len(PROMPT) + len(client.output), client.finish_reason) == (20, "length")


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("num_blocks", "num_prompt", "code", "numbers"),
    [
        (24, 64, FailureCode.CONTEXT_LENGTH_EXCEEDED, ("64 tokens", "prompt has 64")),
        (6, 24, FailureCode.KV_CACHE_EXCEEDED, ("holds 24 tokens", "prompt has 24")),
    ],
)
def test_a_prompt_that_can_never_fit_fails_naming_both_numbers(
    num_blocks: int, num_prompt: int, code: FailureCode, numbers: tuple[str, str]
) -> None:
    mesh = SchedulerMesh()
    mesh.join("w", CheckingWorker(num_blocks=num_blocks, block_size=4))

    fits = mesh.arrive(a_request("fits", [1] * (num_prompt - 1), max_tokens=5))
    client = mesh.arrive(a_request("r", [1] * num_prompt))
    mesh.run_until_idle()

    assert client.failure == code
    assert all(number in client.failure_message for number in numbers)
    assert (len(fits.output), fits.finish_reason) == (1, "length")


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (GenerateRequest("r", b"", SamplingParams(max_tokens=1)), "prompt is empty"),
        (GenerateRequest("r", b"abc", SamplingParams(max_tokens=1)), "32-bit"),
        (GenerateRequest("r", b"abcd", SamplingParams(max_tokens=1), b"x"), "32-bit"),
        (a_request("r", [1, -2]), "negative"),
        (a_request("r", [1], max_tokens=0), "max_tokens is 0"),
        (a_request("r", [1, VOCAB_SIZE]), f"Token id {VOCAB_SIZE} is outside"),
    ],
)
def test_nonsense_fails_one_request_with_a_reason(
    mesh: SchedulerMesh, message: GenerateRequest, words: str
) -> None:
    client = Client(message, [])
    mesh.clients["o", "r"] = client

    mesh.handle(RequestArrived("o", message))

    assert client.failure == FailureCode.INVALID_REQUEST
    assert words in client.failure_message
    mesh.check_ended()


def test_a_full_queue_refuses_new_requests_but_not_those_sent_again() -> None:
    mesh = SchedulerMesh(options(max_queued_tokens=100))
    first = mesh.arrive(a_request("first", [1] * 60))
    more = mesh.arrive(a_request("more", [2] * 41))
    again = mesh.arrive(a_request("again", [3] * 41, output=[4], max_tokens=5))

    assert first.failure is None
    assert more.failure == FailureCode.OVERLOADED
    assert "60 prompt tokens wait, the prompt has 41, and at most 100" in more.failure_message
    assert again.failure is None


def test_an_empty_queue_takes_a_request_of_any_size() -> None:
    mesh = SchedulerMesh(options(max_queued_tokens=10))

    assert mesh.arrive(a_request("r", [1] * 50)).failure is None


# ── cancellation and ownership ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("num_steps", range(6))
def test_a_request_can_be_cancelled_at_any_time_and_frees_its_memory_at_once(
    mesh: SchedulerMesh, num_steps: int
) -> None:
    client = mesh.arrive(a_request("r", [1] * 30, max_tokens=20))
    for _ in range(num_steps):
        mesh.run_step()

    mesh.cancel("r")

    assert mesh.core.stats.kv_usage == 0
    mesh.run_until_idle()
    mesh.check_ended()
    assert len(client.output) < 20


def test_a_waiting_request_can_be_cancelled() -> None:
    mesh = SchedulerMesh()
    mesh.arrive(a_request("r", PROMPT))
    mesh.cancel("r")
    mesh.join("w")

    assert mesh.sent == []


def test_a_preempted_request_can_be_cancelled_while_a_result_is_in_flight() -> None:
    mesh = SchedulerMesh(options(caching=False))
    mesh.join("w", CheckingWorker(num_blocks=10, block_size=4))
    for number in range(30):
        mesh.arrive(a_request(f"short{number}", [number], max_tokens=1))
        mesh.run_until_idle()
    for number in range(3):
        mesh.arrive(a_request(f"r{number}", [number] * 7, max_tokens=25))
    while not mesh.core.stats.num_preemptions:
        mesh.run_step()

    for number in range(3):
        mesh.cancel(f"r{number}")

    assert mesh.core.num_requests == 0
    mesh.run_until_idle()
    mesh.check_ended()


def test_cancelling_twice_or_what_is_unknown_is_ignored(mesh: SchedulerMesh) -> None:
    mesh.arrive(a_request("r", PROMPT))
    mesh.cancel("r")
    mesh.handle(RequestCancelled("o", "r", "deadline"))
    mesh.handle(RequestCancelled("ghost", "r", "deadline"))

    assert mesh.core.stats.num_cancelled == 1


def test_equal_request_ids_of_two_owners_are_two_requests(mesh: SchedulerMesh) -> None:
    one = mesh.arrive(a_request("r", PROMPT, seed=1), owner="a")
    other = mesh.arrive(a_request("r", PROMPT, seed=2), owner="b")
    mesh.cancel("r", owner="a")
    mesh.run_until_idle()

    assert one.finish_reason is None
    other.check_output(length_limit=64)
    assert other.finish_reason == "length"


def test_all_requests_of_a_lost_owner_end(mesh: SchedulerMesh) -> None:
    for owner in ("a", "b"):
        for number in range(3):
            mesh.arrive(a_request(f"r{number}", PROMPT), owner=owner)

    mesh.handle(OwnerLost("a"))

    assert mesh.core.num_requests == 3


def test_what_an_owner_does_not_list_is_freed_and_what_is_not_here_is_reported(
    mesh: SchedulerMesh,
) -> None:
    for number in range(3):
        mesh.arrive(a_request(f"r{number}", PROMPT))

    mesh.handle(LiveRequestsListed("o", ("r1", "ghost")))

    assert mesh.core.num_requests == 1
    assert mesh.unknown == ["ghost"]


def test_a_request_sent_again_goes_on_behind_what_was_emitted(mesh: SchedulerMesh) -> None:
    whole = completion(PROMPT, a_request("r", PROMPT, max_tokens=12).sampling, 64)

    client = mesh.arrive(a_request("r", PROMPT, max_tokens=12, output=whole[:5]))
    mesh.run_until_idle()

    assert client.output == whole
    assert client.finish_reason == "length"


@pytest.mark.parametrize(("output", "reason"), [([4, 5, EOS], "stop"), ([4, 5, 6, 7, 8], "length")])
def test_a_request_sent_again_that_was_over_ends_at_once(
    mesh: SchedulerMesh, output: list[int], reason: str
) -> None:
    client = mesh.arrive(a_request("r", PROMPT, max_tokens=5, eos=True, output=output))

    assert client.finish_reason == reason
    assert client.output == output
    assert mesh.sent == []


def test_the_same_id_again_replaces_the_request(mesh: SchedulerMesh) -> None:
    mesh.arrive(a_request("r", PROMPT, max_tokens=30))
    mesh.run_step()
    client = mesh.arrive(a_request("r", PROMPT[::-1], max_tokens=3))
    mesh.run_until_idle()

    client.check_output(length_limit=64)
    assert mesh.core.stats.num_cancelled == 1


# ── workers ──────────────────────────────────────────────────────────────────────────────────────


def test_requests_wait_for_the_first_worker() -> None:
    mesh = SchedulerMesh()
    clients = [mesh.arrive(a_request(f"r{n}", [n, 1, 2])) for n in range(3)]
    mesh.join("w")
    mesh.run_until_idle()

    assert all(client.finish_reason for client in clients)


def test_a_lost_workers_requests_go_on_elsewhere_with_the_same_tokens() -> None:
    mesh = SchedulerMesh()
    mesh.join("a")
    clients = [mesh.arrive(a_request(f"r{n}", [n] * 9, max_tokens=20)) for n in range(5)]
    for _ in range(9):
        mesh.run_step("a")

    mesh.lose("a")
    assert mesh.core.stats.num_running == 0
    mesh.join("b")
    mesh.run_until_idle()

    for client in clients:
        client.check_output(length_limit=64)
        assert len(client.output) == 20


def test_a_request_that_is_running_whenever_a_worker_dies_fails() -> None:
    mesh = SchedulerMesh(options(max_num_seqs=1))
    poison = mesh.arrive(a_request("poison", PROMPT))
    behind = mesh.arrive(a_request("behind", [1, 2]))
    for number in range(MAX_WORKER_LOSSES):
        assert poison.failure is None
        mesh.join(f"w{number}")
        mesh.lose(f"w{number}")

    assert poison.failure == FailureCode.INTERNAL
    assert behind.failure is None


def test_a_worker_that_joins_again_has_started_afresh(mesh: SchedulerMesh) -> None:
    client = mesh.arrive(a_request("r", PROMPT, max_tokens=15))
    for _ in range(4):
        mesh.run_step()

    mesh.join("w", CheckingWorker())
    mesh.run_until_idle()

    client.check_output(length_limit=64)
    assert len(client.output) == 15


def test_results_of_a_worker_that_is_gone_are_ignored(mesh: SchedulerMesh) -> None:
    client = mesh.arrive(a_request("r", PROMPT))
    late = result(mesh, 5)
    mesh.lose("w")

    mesh.handle(StepFinished("w", late))
    mesh.handle(StepRefused("w", StepRejected(late.step_id, "late")))
    mesh.handle(WorkerLost("w"))

    assert client.output == []
    assert mesh.core.stats.num_ignored_results == 2


def test_the_same_result_twice_counts_once(mesh: SchedulerMesh) -> None:
    client = mesh.arrive(a_request("r", PROMPT))
    answer = result(mesh, 5)
    mesh.handle(StepFinished("w", answer))
    mesh.handle(StepFinished("w", answer))

    assert client.output == [5]


def test_an_answer_to_a_later_step_makes_the_one_before_void(mesh: SchedulerMesh) -> None:
    client = mesh.arrive(a_request("r", PROMPT, max_tokens=10))
    mesh.workers["w"].lose_plan()
    mesh.run_step()
    assert client.output == []

    mesh.run_until_idle()
    client.check_output(length_limit=64)
    assert len(client.output) == 10


def test_a_rejected_step_is_sent_again_in_full() -> None:
    mesh = SchedulerMesh()
    mesh.join("w")
    clients = [mesh.arrive(a_request(f"r{n}", [n] * 9, max_tokens=20)) for n in range(4)]
    for _ in range(6):
        mesh.run_step()
    mesh.reject_step()
    mesh.run_until_idle()

    for client in clients:
        client.check_output(length_limit=64)
        assert len(client.output) == 20


def test_a_rejected_step_leaves_nothing_false_in_the_prefix_cache() -> None:
    mesh = SchedulerMesh(options(token_budget=16))
    worker = mesh.join("w")
    mesh.arrive(a_request("a", [7] * 33, max_tokens=1))
    mesh.reject_step()
    mesh.arrive(a_request("b", [7] * 40, max_tokens=1))
    mesh.run_until_idle()  # the worker checks what is in each block

    mesh.check_ended()
    assert worker.steps


def test_what_is_rejected_again_and_again_fails(mesh: SchedulerMesh) -> None:
    client = mesh.arrive(a_request("r", PROMPT))
    num_rejected = 0
    while not client.over:
        mesh.reject_step()
        num_rejected += 1
        assert num_rejected <= 2 * MAX_REJECTIONS  # each takes the step behind it along

    assert client.failure == FailureCode.INTERNAL


def test_only_the_sequences_that_a_rejection_names_are_to_blame(mesh: SchedulerMesh) -> None:
    guilty = mesh.arrive(a_request("guilty", PROMPT, max_tokens=30))
    innocent = mesh.arrive(a_request("innocent", [1, 2, 3], max_tokens=30))
    while not guilty.over:
        mesh.run_step()
        plan = mesh.workers["w"].plans[0]
        by_length = {new.num_prompt_tokens: new.sequence_id for new in plan.new_sequences}
        if len(PROMPT) in by_length:
            rejected = mesh.workers["w"].reject()
            named = StepRejected(rejected.step_id, "no", (by_length[len(PROMPT)],))
            mesh.handle(StepRefused("w", named))
        elif not guilty.output:
            continue
        else:
            mesh.reject_step()
    mesh.run_until_idle()

    assert guilty.failure == FailureCode.INTERNAL
    assert innocent.over


def test_a_fault_fails_its_request_and_no_other(mesh: SchedulerMesh) -> None:
    first = mesh.arrive(a_request("first", PROMPT))
    second = mesh.arrive(a_request("second", [9, 9]))
    mesh.run_step(faulty=True)
    mesh.run_until_idle()

    assert first.failure == FailureCode.INTERNAL
    assert "not finite" in first.failure_message
    second.check_output(length_limit=64)
    assert second.finish_reason == "length"


def test_a_sample_that_is_missing_or_no_token_is_sampled_again(mesh: SchedulerMesh) -> None:
    client = mesh.arrive(a_request("r", PROMPT, max_tokens=10))
    mesh.handle(StepFinished("w", result(mesh, VOCAB_SIZE)))
    assert client.output == []

    mesh.join("w", CheckingWorker())
    mesh.run_until_idle()
    client.check_output(length_limit=64)
    assert len(client.output) == 10


def test_faults_and_samples_of_unknown_sequences_are_ignored(mesh: SchedulerMesh) -> None:
    client = mesh.arrive(a_request("r", PROMPT))
    answer = result(mesh, 5)
    odd = StepResult(
        answer.step_id,
        (*answer.sampled, SampledToken(999, 3), *answer.sampled),
        -1,
        (SequenceFault(998, "?"),),
    )
    mesh.handle(StepFinished("w", odd))

    assert client.output == [5]


def test_a_draining_worker_finishes_what_it_runs_and_takes_nothing_more() -> None:
    mesh = SchedulerMesh(options(max_num_seqs=2))
    mesh.join("a")
    clients = [mesh.arrive(a_request(f"r{n}", [n, n], max_tokens=6)) for n in range(4)]
    mesh.run_step("a")

    mesh.handle(WorkerDraining("a"))
    mesh.run_until_idle()
    assert [bool(client.finish_reason) for client in clients] == [True, True, False, False]
    assert not mesh.status.ready

    mesh.join("b")
    mesh.run_until_idle()
    assert all(client.finish_reason for client in clients)


@pytest.mark.parametrize(
    "field", ["num_blocks", "block_size", "blocks_per_group", "max_model_len", "max_num_seqs"]
)
def test_a_worker_that_can_hold_nothing_is_refused(field: str) -> None:
    mesh = SchedulerMesh()
    worker = CheckingWorker()
    setattr(worker, field, 0)
    mesh.join("w", worker)

    assert mesh.refused == [f"{field} is 0, it must be between 1 and 16777216"]
    assert not mesh.status.ready


# ── status ───────────────────────────────────────────────────────────────────────────────────────


def test_it_is_ready_while_a_worker_takes_requests() -> None:
    mesh = SchedulerMesh()
    states = [mesh.status.ready]
    mesh.join("w")
    states.append(mesh.status.ready)
    mesh.lose("w")
    states.append(mesh.status.ready)

    assert states == [False, True, False]
    assert mesh.status.limits is None


def test_its_limits_are_the_smallest_of_its_workers() -> None:
    mesh = SchedulerMesh()
    mesh.join("a", CheckingWorker(num_blocks=24, max_model_len=64))
    mesh.join("b", CheckingWorker(num_blocks=10, max_model_len=90))

    limits = mesh.status.limits
    assert limits is not None
    assert (limits.max_model_len, limits.kv_capacity_tokens) == (64, 40)
    assert (limits.model, limits.vocab_size) == ("fake", VOCAB_SIZE)
    assert mesh.status.num_workers == 2


def test_the_number_of_requests_is_news_once_per_tick(mesh: SchedulerMesh) -> None:
    for number in range(3):
        mesh.arrive(a_request(f"r{number}", PROMPT))
    assert mesh.status.num_requests == 0

    mesh.handle(Tick())
    assert mesh.status.num_requests == 3
    assert not any(isinstance(i, StatusChanged) for i in mesh.handle(Tick()))
