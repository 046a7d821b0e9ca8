"""Several workers: who gets what, and who helps whom."""

import msgspec

from services.scheduler.replicas import unusable
from tests.support.checking_worker import CheckingWorker
from tests.support.scheduler_mesh import SchedulerMesh, a_request, options
from tests.support.timed_worker import timed_worker


def steps_of(mesh: SchedulerMesh, name: str) -> int:
    return len(mesh.workers[name].steps)


def tokens_of(mesh: SchedulerMesh, name: str) -> int:
    return sum(chunk.num_tokens for plan in mesh.workers[name].steps for chunk in plan.chunks)


def roomy(max_num_seqs: int = 8) -> CheckingWorker:
    return CheckingWorker(num_blocks=400, max_model_len=400, max_num_seqs=max_num_seqs)


def test_work_is_shared_by_its_tokens() -> None:
    mesh = SchedulerMesh()
    for name in ("a", "b"):
        mesh.join(name, roomy())
    for number in range(20):
        mesh.arrive(a_request(f"r{number}", [number] * 40, max_tokens=4))
    mesh.run_until_idle()

    assert 0.7 < tokens_of(mesh, "a") / tokens_of(mesh, "b") < 1.4
    mesh.check_ended()


def test_a_request_goes_where_its_prefix_is_cached() -> None:
    mesh = SchedulerMesh()
    for name in ("a", "b"):
        mesh.join(name, roomy())
    prompts = [[n] * 40 for n in (1, 2)]
    for number, prompt in enumerate(prompts):
        mesh.arrive(a_request(f"first{number}", prompt, max_tokens=1))
    mesh.run_until_idle()
    before = {name: tokens_of(mesh, name) for name in ("a", "b")}

    for number, prompt in enumerate(reversed(prompts)):
        mesh.arrive(a_request(f"again{number}", prompt, max_tokens=1))
        mesh.run_until_idle()

    assert [tokens_of(mesh, name) - before[name] for name in ("a", "b")] == [4, 4]


def test_a_cached_prefix_does_not_outweigh_a_long_queue() -> None:
    mesh = SchedulerMesh()
    mesh.join("a", roomy(max_num_seqs=1))
    mesh.arrive(a_request("first", [1] * 9, max_tokens=1))
    mesh.run_until_idle()
    for number in range(6):
        mesh.arrive(a_request(f"queue{number}", [number + 2] * 60, max_tokens=20))
    mesh.join("b", roomy())

    quick = mesh.arrive(a_request("quick", [1] * 9, max_tokens=1))
    while not quick.over:
        mesh.run_step("b")

    assert quick.num_cached_tokens == 0


def test_an_idle_worker_takes_over_what_waits_for_another() -> None:
    mesh = SchedulerMesh(options(max_num_seqs=1))
    mesh.join("a", roomy())
    for number in range(8):
        mesh.arrive(a_request(f"r{number}", [number] * 30, max_tokens=30))

    mesh.join("b", roomy())
    mesh.run_until_idle()

    assert steps_of(mesh, "b") > 0.5 * steps_of(mesh, "a")
    mesh.check_ended()


def test_work_is_shared_by_its_predicted_time() -> None:
    mesh = SchedulerMesh(options(token_budget=64))
    mesh.join("fast", timed_worker())
    mesh.join("slow", timed_worker(slowness=3.0))
    for number in range(60):
        mesh.arrive(a_request(f"r{number}", [number] * 100, max_tokens=1))
    waiting = {replica.worker: len(replica.waiting) for replica in mesh.core.replicas}

    # All are placed before anything has run: three of four where a token takes a third of the time.
    assert 2.4 < waiting["fast"] / waiting["slow"] < 3.6


def test_long_prompts_weigh_more_than_their_tokens() -> None:
    mesh = SchedulerMesh(options(token_budget=64))
    for name in ("a", "b"):
        mesh.join(name, timed_worker())
    mesh.arrive(a_request("long", [1] * 3900, max_tokens=1))
    for number in range(60):
        mesh.arrive(a_request(f"short{number}", [number + 2] * 100, max_tokens=1))
    a, b = mesh.core.replicas
    tokens = [
        r.waiting.num_tokens + sum(p.num_uncomputed_tokens for p in r.prefills.values())
        for r in (a, b)
    ]

    # 3,900 tokens that attend to 2,000 others each take 15 % longer than 39 prompts of 100 do.
    assert tokens[0] < tokens[1]


def test_an_idle_worker_does_not_take_what_it_would_finish_later() -> None:
    mesh = SchedulerMesh(options(token_budget=64, max_num_seqs=1))
    mesh.join("fast", timed_worker())
    mesh.arrive(a_request("running", [1] * 100, max_tokens=3))
    waiting = mesh.arrive(a_request("waiting", [2] * 640, max_tokens=1))
    mesh.join("slow", timed_worker(slowness=10.0))
    while not waiting.over:
        mesh.run_step("fast")

    assert steps_of(mesh, "slow") == 0


def test_a_request_too_long_for_one_worker_runs_on_a_bigger_one() -> None:
    mesh = SchedulerMesh()
    mesh.join("small", CheckingWorker(num_blocks=5, block_size=4, max_model_len=400))
    mesh.join("big", roomy())
    client = mesh.arrive(a_request("r", [1] * 50, max_tokens=5))
    mesh.run_until_idle()

    client.check_output(length_limit=400)
    assert steps_of(mesh, "small") == 0


def test_a_request_that_outgrew_all_that_are_left_ends_by_its_length() -> None:
    mesh = SchedulerMesh()
    mesh.join("big", roomy())
    client = mesh.arrive(a_request("r", [1] * 30, max_tokens=100))
    for _ in range(20):
        mesh.run_step("big")
    mesh.join("small", CheckingWorker(num_blocks=9, block_size=4))
    mesh.lose("big")

    assert client.finish_reason == "length"
    assert 0 < len(client.output) < 100


def test_block_sizes_may_differ() -> None:
    mesh = SchedulerMesh(options(max_num_seqs=2))
    for name, size in (("a", 3), ("b", 7)):
        mesh.join(name, CheckingWorker(num_blocks=60, block_size=size, max_model_len=100))
    clients = [mesh.arrive(a_request(f"r{n}", [n % 3] * 25, max_tokens=9)) for n in range(12)]
    mesh.run_until_idle()

    for client in clients:
        client.check_output(length_limit=100)
    assert min(steps_of(mesh, name) for name in ("a", "b")) > 0


def test_workers_of_different_models_do_not_serve_together() -> None:
    mesh = SchedulerMesh()
    mesh.join("a")
    other = msgspec.structs.replace(CheckingWorker().join, model="another", vocab_size=5)

    assert unusable(other, list(mesh.core._replicas)) == (
        "it serves another with 5 tokens, the workers here serve fake with 97"
    )
