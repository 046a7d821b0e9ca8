"""What goes into a step, what it costs in memory, and who has to wait or to go."""

from collections import Counter

import pytest

from common.messages import Chunk, StepPlan
from common.token_ids import num_ids, unpack_ids
from services.scheduler.planner import MAX_OVERTAKES, MAX_PREEMPTIONS
from services.scheduler.splitfuse import TILE, Partition
from tests.support.checking_worker import CheckingWorker
from tests.support.scheduler_mesh import Client, SchedulerMesh, a_request, options


def prompt(length: int, start: int = 1) -> list[int]:
    """Distinct tokens for distinct `start`s, so that nothing is shared by chance."""
    return [(start + 31 * i) % 97 for i in range(length)]


def sizes(plan: StepPlan) -> list[int]:
    return [chunk.num_tokens for chunk in plan.chunks]


def roomy(max_num_seqs: int = 64) -> CheckingWorker:
    return CheckingWorker(
        num_blocks=4000, block_size=4, max_model_len=4000, max_num_seqs=max_num_seqs
    )


# ── composition ──────────────────────────────────────────────────────────────────────────────────


def test_a_sequence_is_told_once_and_then_only_what_is_new() -> None:
    mesh = SchedulerMesh(options(token_budget=8))
    mesh.arrive(a_request("r", prompt(10), max_tokens=3))
    mesh.join(worker=roomy())
    mesh.run_until_idle()

    first, *later = mesh.sent
    (new,) = first.new_sequences
    assert list(unpack_ids(new.token_ids)) == prompt(10)
    assert (new.num_prompt_tokens, new.num_computed_tokens, new.block_ids) == (10, 0, b"")
    assert all(plan.new_sequences == () for plan in later)
    assert [
        (c.num_computed_tokens, c.num_tokens, c.sample) for p in mesh.sent for c in p.chunks
    ] == [
        (0, 8, False),
        (8, 2, True),
        (10, 1, True),
        (11, 1, True),
    ]
    assert [num_ids(c.new_block_ids) for p in mesh.sent for c in p.chunks] == [2, 1, 0, 0]


def test_a_decode_is_planned_before_the_token_it_computes_is_known() -> None:
    mesh = SchedulerMesh()
    mesh.join(worker=roomy())
    mesh.arrive(a_request("r", prompt(3), max_tokens=5))

    assert len(mesh.sent) == 2
    assert mesh.sent[1].chunks[0] == Chunk(1, 3, 1, b"", True)


def test_no_more_than_two_steps_are_in_flight() -> None:
    mesh = SchedulerMesh(options(token_budget=4))
    mesh.join(worker=roomy())
    for number in range(6):
        mesh.arrive(a_request(f"r{number}", prompt(20, number)))

    assert len(mesh.sent) == 2


def test_step_ids_ascend() -> None:
    mesh = SchedulerMesh()
    mesh.join(worker=roomy())
    mesh.arrive(a_request("r", prompt(30)))
    mesh.run_until_idle()

    ids = [plan.step_id for plan in mesh.sent]
    assert ids == sorted(set(ids))


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 17])
def test_never_more_tokens_are_sampled_than_were_asked_for(max_tokens: int) -> None:
    mesh = SchedulerMesh()
    mesh.join(worker=roomy())
    mesh.arrive(a_request("r", prompt(5), max_tokens=max_tokens))
    mesh.run_until_idle()

    assert sum(chunk.sample for plan in mesh.sent for chunk in plan.chunks) == max_tokens


@pytest.mark.parametrize("partition", ["greedy", "balanced"])
def test_every_stream_gets_a_token_in_every_step_while_a_long_prompt_comes_in(
    partition: Partition,
) -> None:
    mesh = SchedulerMesh(options(token_budget=64, partition=partition))
    worker = mesh.join(worker=roomy())
    for number in range(5):
        mesh.arrive(a_request(f"stream{number}", prompt(3, number), max_tokens=200))
    while mesh.core.stats.num_running < 5 or len(mesh.sent[-1].chunks) < 5:
        mesh.run_step()
    num_before = len(mesh.sent)

    long = mesh.arrive(a_request("long", prompt(1500, 50), max_tokens=1))
    while not long.over:
        mesh.run_step()

    during = mesh.sent[num_before:]
    assert len(during) >= 1500 // (64 - 5)
    assert all(sizes(plan)[:5] == [1] * 5 for plan in during)
    assert all(sum(sizes(plan)) <= 64 for plan in worker.steps)


def test_the_chunks_of_a_balanced_prompt_differ_by_at_most_a_tile() -> None:
    mesh = SchedulerMesh(options(token_budget=100))
    mesh.join(worker=roomy())
    mesh.arrive(a_request("r", prompt(1234), max_tokens=1))
    mesh.run_until_idle()

    chunks = [size for plan in mesh.sent for size in sizes(plan)]
    assert sum(chunks) == 1234
    assert max(chunks) - min(chunks) <= TILE


def test_a_prompt_with_another_behind_it_fills_the_pass() -> None:
    mesh = SchedulerMesh(options(token_budget=100))
    for name in ("a", "b"):
        mesh.arrive(a_request(name, prompt(130, ord(name)), max_tokens=1))
    mesh.join(worker=roomy())
    mesh.run_until_idle()

    # The last one is cut evenly as soon as it is alone: 9 tiles, of which 4 have room beside the
    # other's rest, would take three passes of 3.
    assert [sum(sizes(plan)) for plan in mesh.sent] == [100, 30 + 48, 82]


def test_prompts_run_in_order_of_priority_and_arrival() -> None:
    mesh = SchedulerMesh(options(token_budget=10))
    mesh.arrive(a_request("late", prompt(10, 1), priority=1))
    mesh.arrive(a_request("first", prompt(10, 2)))
    mesh.arrive(a_request("second", prompt(10, 3)))
    mesh.join(worker=roomy())
    mesh.run_until_idle()

    started = [new for plan in mesh.sent for new in plan.new_sequences]
    starts = [next(iter(unpack_ids(new.token_ids))) for new in started]
    assert starts == [2, 3, 1]


def test_an_urgent_prompt_does_not_wait_for_the_rest_of_a_long_one() -> None:
    mesh = SchedulerMesh(options(token_budget=10))
    mesh.join(worker=roomy())
    long = mesh.arrive(a_request("long", prompt(200, 1), max_tokens=1))
    mesh.run_step()
    urgent = mesh.arrive(a_request("urgent", prompt(12, 2), max_tokens=1, priority=-1))
    while not urgent.over:
        mesh.run_step()

    # One pass had run and two were in flight when it came; it takes two, of 10 tokens and 2; and
    # when the last of these has run, two are in flight again.
    assert len(mesh.sent) == 1 + 2 + 2 + 2
    assert not long.over


@pytest.mark.parametrize(("device", "budget"), [("cpu", 512), ("cuda:1", 2048)])
def test_the_budget_depends_on_the_device_unless_it_is_given(device: str, budget: int) -> None:
    mesh = SchedulerMesh(options(token_budget=None, partition="greedy"))
    mesh.arrive(a_request("r", prompt(3000), max_tokens=1))
    mesh.join(worker=CheckingWorker(4000, 4, 4000, device=device))

    assert sizes(mesh.sent[0]) == [budget]


@pytest.mark.parametrize(
    ("budget", "max_num_seqs", "worker_max", "expected"),
    [(3, 8, 8, 3), (16, 4, 8, 4), (16, 8, 5, 5)],
)
def test_so_many_run_at_once_that_each_can_decode_in_each_step(
    budget: int, max_num_seqs: int, worker_max: int, expected: int
) -> None:
    mesh = SchedulerMesh(options(token_budget=budget, max_num_seqs=max_num_seqs))
    for number in range(12):
        mesh.arrive(a_request(f"r{number}", prompt(1, number), max_tokens=20))
    mesh.join(worker=roomy(max_num_seqs=worker_max))
    for _ in range(12):
        mesh.run_step()

    assert mesh.core.stats.num_running == expected
    assert sizes(mesh.sent[-1]) == [1] * expected


def test_what_has_ended_is_dropped_with_the_next_plan() -> None:
    mesh = SchedulerMesh()
    mesh.join(worker=roomy())
    mesh.arrive(a_request("a", prompt(3), max_tokens=1))
    mesh.arrive(a_request("b", prompt(3, 9), max_tokens=3))
    mesh.run_until_idle()

    assert [plan.dropped_sequence_ids for plan in mesh.sent[:3]] == [(), (), (1,)]


def test_an_idle_worker_is_made_to_forget_what_has_ended() -> None:
    mesh = SchedulerMesh()
    worker = mesh.join(worker=roomy())
    mesh.arrive(a_request("a", prompt(3), max_tokens=1))
    mesh.run_until_idle()

    assert worker.num_sequences == 0


# ── prefix cache ─────────────────────────────────────────────────────────────────────────────────


def test_a_prompt_seen_before_is_computed_from_its_last_block_on() -> None:
    mesh = SchedulerMesh()
    mesh.join(worker=roomy())
    mesh.arrive(a_request("a", prompt(14), max_tokens=1))
    mesh.run_until_idle()

    again = mesh.arrive(a_request("b", prompt(14), max_tokens=1))
    mesh.run_until_idle()

    assert again.num_cached_tokens == 12
    assert sizes(mesh.sent[-1]) == [2]


def test_a_prompt_of_whole_blocks_still_computes_its_last_one() -> None:
    mesh = SchedulerMesh()
    mesh.join(worker=roomy())
    for name in ("a", "b"):
        mesh.arrive(a_request(name, prompt(12), max_tokens=1))
        mesh.run_until_idle()

    assert sizes(mesh.sent[-1]) == [4]


def test_equal_prompts_that_come_together_are_computed_once() -> None:
    mesh = SchedulerMesh(options(token_budget=64))
    for number in range(8):
        mesh.arrive(a_request(f"r{number}", prompt(41), seed=number, max_tokens=2))
    mesh.join(worker=roomy())
    mesh.run_until_idle()

    assert mesh.core.stats.num_prompt_tokens == 41 + 7 * 1


def test_what_a_request_generated_is_found_by_the_next_turn_of_the_talk() -> None:
    mesh = SchedulerMesh()
    mesh.join(worker=roomy())
    first = mesh.arrive(a_request("a", prompt(10), max_tokens=12))
    mesh.run_until_idle()

    turn = [*prompt(10), *first.output, 5, 6, 7]
    second = mesh.arrive(a_request("b", turn, max_tokens=1))
    mesh.run_until_idle()

    assert second.num_cached_tokens == 20  # five blocks; the 22nd token's KV was never written


def test_tenants_do_not_share() -> None:
    mesh = SchedulerMesh()
    mesh.join(worker=roomy())
    for tenant in ("x", "y"):
        mesh.arrive(a_request(tenant, prompt(20), tenant=tenant, max_tokens=1))
        mesh.run_until_idle()

    assert mesh.core.stats.num_cache_hit_tokens == 0


def test_without_prefix_caching_everything_is_computed() -> None:
    mesh = SchedulerMesh(options(caching=False))
    mesh.join(worker=roomy())
    for name in ("a", "b"):
        mesh.arrive(a_request(name, prompt(20), max_tokens=4))
        mesh.run_until_idle()

    assert mesh.core.stats.num_prompt_tokens == 40


# ── memory ───────────────────────────────────────────────────────────────────────────────────────


def teach(mesh: SchedulerMesh, num_output_tokens: int) -> None:
    """Let admission expect outputs of this length."""
    for number in range(40):
        mesh.arrive(a_request(f"teach{number}", [number], max_tokens=num_output_tokens))
        mesh.run_until_idle()


def test_requests_wait_until_their_predicted_end_fits() -> None:
    mesh = SchedulerMesh()
    mesh.join(worker=CheckingWorker(num_blocks=12, block_size=4))  # 48 tokens
    teach(mesh, 10)
    for number in range(4):
        mesh.arrive(a_request(f"r{number}", prompt(10, number), max_tokens=10))
    mesh.run_step()

    assert mesh.core.stats.num_running == 2  # of 5 blocks each in the end
    mesh.run_until_idle()
    assert mesh.core.stats.num_preemptions == 0


def test_a_small_request_passes_one_that_does_not_fit() -> None:
    mesh = SchedulerMesh()
    mesh.join(worker=CheckingWorker(num_blocks=12, block_size=4))
    mesh.arrive(a_request("running", prompt(20, 1), max_tokens=10))
    big = mesh.arrive(a_request("big", prompt(40, 2), max_tokens=2))
    small = mesh.arrive(a_request("small", prompt(3, 3), max_tokens=2))
    while not small.over:
        mesh.run_step()

    assert big.output == []


def test_no_more_than_a_bounded_number_pass_it() -> None:
    mesh = SchedulerMesh()
    mesh.join(worker=CheckingWorker(num_blocks=12, block_size=4))
    mesh.arrive(a_request("running", prompt(4, 1), max_tokens=44))
    big = mesh.arrive(a_request("big", prompt(40, 2), max_tokens=2))
    smalls: list[Client] = []
    while not big.output:
        smalls.append(mesh.arrive(a_request(f"s{len(smalls)}", prompt(3, 3), max_tokens=1)))
        mesh.run_step()

    assert sum(bool(small.output) for small in smalls) <= MAX_OVERTAKES + 1


def test_when_memory_runs_out_the_cheapest_makes_room_and_loses_nothing() -> None:
    mesh = SchedulerMesh(options(token_budget=64))
    mesh.join(worker=CheckingWorker(num_blocks=16, block_size=4))
    teach(mesh, 1)
    oldest = mesh.arrive(a_request("oldest", prompt(4, 1), max_tokens=30))
    costly = mesh.arrive(a_request("costly", prompt(24, 2), max_tokens=30))
    cheap = mesh.arrive(a_request("cheap", prompt(12, 3), max_tokens=30))
    mesh.run_until_idle()

    assert mesh.core.stats.num_preemptions > 0
    starts = Counter(new.num_prompt_tokens for plan in mesh.sent for new in plan.new_sequences)
    assert starts[4] == 1
    assert starts[12] >= 2
    for client in (oldest, costly, cheap):
        client.check_output(length_limit=64)
        assert client.finish_reason == "length"


def test_results_in_flight_count_after_a_preemption() -> None:
    mesh = SchedulerMesh(options(caching=False))
    mesh.join(worker=CheckingWorker(num_blocks=10, block_size=4))
    teach(mesh, 1)
    clients = [
        mesh.arrive(a_request(f"r{number}", prompt(7, number), max_tokens=25))
        for number in range(3)
    ]
    while not mesh.core.stats.num_preemptions:
        mesh.run_step()
    mesh.run_until_idle()

    # Nothing is sampled twice: each sample of each step was of use.
    samples = sum(chunk.sample for plan in mesh.sent for chunk in plan.chunks)
    assert samples == sum(len(client.output) for client in mesh.clients.values())
    assert all(len(client.output) == 25 for client in clients)


def test_a_request_is_preempted_only_so_often_while_there_are_others() -> None:
    mesh = SchedulerMesh(options(caching=False))
    mesh.join(worker=CheckingWorker(num_blocks=16, block_size=4))
    for number in range(20):
        for index in range(8):  # admission is led to expect short outputs again and again
            mesh.arrive(a_request(f"short{number}.{index}", [index], max_tokens=1))
            mesh.run_step()
        mesh.arrive(a_request(f"long{number}", prompt(6, number), max_tokens=40))
    mesh.run_until_idle()

    starts = Counter(
        new.token_ids[: 4 * 6]
        for plan in mesh.sent
        for new in plan.new_sequences
        if new.num_prompt_tokens == 6
    )
    assert mesh.core.stats.num_preemptions > 5
    assert max(starts.values()) <= MAX_PREEMPTIONS + 2


def test_a_request_that_needs_all_memory_gets_it() -> None:
    mesh = SchedulerMesh()
    mesh.join(worker=CheckingWorker(num_blocks=10, block_size=4, max_model_len=40))
    teach(mesh, 1)
    clients = [mesh.arrive(a_request(f"r{n}", prompt(20, n), max_tokens=20)) for n in range(4)]
    mesh.run_until_idle()

    for client in clients:
        client.check_output(length_limit=40)
        assert len(client.output) == 20


def test_a_step_tells_how_long_those_that_start_with_it_have_waited() -> None:
    mesh = SchedulerMesh(options(max_num_seqs=1))
    mesh.join(worker=roomy())
    mesh.arrive(a_request("first", prompt(3), max_tokens=1))
    mesh.arrive(a_request("second", prompt(3, 9), max_tokens=1))
    mesh.now += 2.0
    mesh.run_until_idle()

    first, second = mesh.queue_times_s
    assert first < 0.1
    assert 2.0 <= second < 2.1
