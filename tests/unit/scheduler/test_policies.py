"""What sets the policies apart: who waits for whom, on the same requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.messages import StepPlan
from services.scheduler.pass_budget import CPU_TOKEN_BUDGET
from services.scheduler.policies import PolicyName, make_policy
from services.scheduler.replicas import WHOLE_PROMPT_TOKEN_BUDGET
from tests.support.checking_worker import CheckingWorker
from tests.support.scheduler_mesh import SchedulerMesh, a_request, options

POLICIES: tuple[PolicyName, ...] = ("splitfuse", "prefill-first", "orca")
WHOLE_PROMPTS: tuple[PolicyName, ...] = ("prefill-first", "orca")


def sizes(plan: StepPlan) -> list[int]:
    return [chunk.num_tokens for chunk in plan.chunks]


def roomy(max_num_seqs: int = 64) -> CheckingWorker:
    return CheckingWorker(
        num_blocks=4000, block_size=4, max_model_len=1000, max_num_seqs=max_num_seqs
    )


def with_streams(policy: PolicyName, num_streams: int, max_tokens: int = 100) -> SchedulerMesh:
    """A mesh that runs so many streams, each with its first tokens out."""
    mesh = SchedulerMesh(options(token_budget=64, policy=policy, max_num_seqs=16))
    mesh.join(worker=roomy())
    for number in range(num_streams):
        mesh.arrive(a_request(f"stream{number}", [number + 1] * 3, max_tokens=max_tokens))
    while mesh.core.stats.num_output_tokens < 3 * num_streams:
        mesh.run_step()
    mesh.sent.clear()
    return mesh


def test_prefill_first_lets_streams_wait_while_prompts_come_in() -> None:
    mesh = with_streams("prefill-first", 3)
    for number in range(2):
        mesh.arrive(a_request(f"long{number}", [50 + number] * 700, max_tokens=2))
    for _ in range(4):
        mesh.run_step()

    # Two passes of one whole prompt each, since both are more than 1,000 tokens, then all decodes.
    assert [sizes(plan) for plan in mesh.sent[:3]] == [[700], [700], [1] * 5]


def test_prefill_first_fills_a_pass_with_whole_prompts() -> None:
    mesh = with_streams("prefill-first", 1)
    mesh.run_step()
    mesh.sent.clear()
    for number in range(5):
        mesh.arrive(a_request(f"r{number}", [50 + number] * 300, max_tokens=2))
    mesh.run_step()
    mesh.run_step()

    # 64 tokens were asked for, but a sequence may reach 1,000; the two steps in flight when the
    # prompts came are full, and three prompts of 300 fit the pass after.
    assert [300, 300, 300] in [sizes(plan) for plan in mesh.sent]


def test_prefill_first_decodes_while_the_next_prompt_lacks_memory() -> None:
    mesh = SchedulerMesh(options(policy="prefill-first"))
    mesh.join(worker=CheckingWorker(num_blocks=12, block_size=4))
    stream = mesh.arrive(a_request("stream", [1] * 10, max_tokens=20))
    mesh.run_step()
    big = mesh.arrive(a_request("big", [2] * 40, max_tokens=2))
    while not stream.over:
        mesh.run_step()

    assert stream.finish_reason == "length"
    assert big.output == []


def test_prefill_first_decodes_when_no_more_sequences_may_run() -> None:
    mesh = SchedulerMesh(options(policy="prefill-first", max_num_seqs=2))
    mesh.join(worker=roomy())
    for number in range(3):
        mesh.arrive(a_request(f"r{number}", [number] * 5, max_tokens=4))
    mesh.run_until_idle()

    mesh.check_ended()


def test_orca_lets_whole_prompts_join_the_streams() -> None:
    mesh = with_streams("orca", 3)
    mesh.arrive(a_request("long", [50] * 900, max_tokens=2))
    mesh.run_step()

    assert sizes(mesh.sent[-1]) == [1, 1, 1, 900]


def test_splitfuse_never_lets_a_prompt_make_a_pass_longer_than_the_budget() -> None:
    mesh = with_streams("splitfuse", 3)
    mesh.arrive(a_request("long", [50] * 900, max_tokens=2))
    mesh.run_until_idle()

    assert max(sum(sizes(plan)) for plan in mesh.sent) <= 64
    assert all(sizes(plan)[:3] == [1, 1, 1] for plan in mesh.sent[:12])


@pytest.mark.parametrize("policy", WHOLE_PROMPTS)
def test_a_prompt_of_the_greatest_length_runs_in_one_pass(policy: PolicyName) -> None:
    mesh = SchedulerMesh(options(token_budget=8, policy=policy))
    mesh.join(worker=roomy())
    mesh.arrive(a_request("longest", [1] * 999, max_tokens=1))

    assert sizes(mesh.sent[0]) == [999]


@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_has_its_default_budget(policy: PolicyName) -> None:
    mesh = SchedulerMesh(options(token_budget=None, policy=policy))
    mesh.join(worker=roomy())

    (replica,) = mesh.core.replicas
    expected = CPU_TOKEN_BUDGET if policy == "splitfuse" else WHOLE_PROMPT_TOKEN_BUDGET
    assert replica.budget.tokens == expected


@pytest.mark.parametrize("policy", WHOLE_PROMPTS)
def test_a_policy_that_does_not_cut_prompts_has_no_partition(policy: PolicyName) -> None:
    with pytest.raises(ValueError, match=f"{policy} does not cut prompts"):
        make_policy(policy, "greedy")


@given(st.sampled_from(WHOLE_PROMPTS), st.integers(1, 5000), st.integers(1, 5000), st.booleans())
def test_whole_means_all_or_nothing(
    policy: PolicyName, num_uncomputed: int, room: int, others_wait: bool
) -> None:
    chunk = make_policy(policy).num_prompt_tokens(num_uncomputed, room, others_wait)

    assert chunk == (num_uncomputed if num_uncomputed <= room else 0)


@given(st.sampled_from(POLICIES), st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 512))
def test_a_budget_is_never_less_than_was_asked_for_nor_than_the_policy_needs(
    policy: PolicyName, wanted: int, length_limit: int, max_num_seqs: int
) -> None:
    budget = make_policy(policy).token_budget(wanted, length_limit, max_num_seqs)

    assert budget >= wanted
    assert make_policy(policy).splits_prompts or budget >= length_limit
