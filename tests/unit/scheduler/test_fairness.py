"""Order and shares as requests see them: tenants, deadlines, and who pays for which time."""

import pytest

from tests.support.scheduler_mesh import Client, SchedulerMesh, a_request, options
from tests.support.timed_worker import timed_worker


def prompt(length: int, start: int = 1) -> list[int]:
    """Distinct tokens for distinct `start`s, so that nothing is shared by chance."""
    return [(start + 31 * i) % 97 for i in range(length)]


def a_mesh(*, target_ttft_ms: float | None = None, max_num_seqs: int = 64) -> SchedulerMesh:
    mesh = SchedulerMesh(
        options(
            token_budget=64,
            max_num_seqs=max_num_seqs,
            target_ttft_ms=target_ttft_ms,
            caching=False,
            partition="greedy",
        )
    )
    mesh.join(worker=timed_worker())
    return mesh


def steps_until(mesh: SchedulerMesh, client: Client) -> int:
    """Passes that run until the request is over."""
    num_steps = 0
    while not client.over:
        mesh.run_step()
        num_steps += 1
    return num_steps


def test_one_tenants_flood_does_not_delay_another_tenant() -> None:
    mesh = a_mesh()
    for number in range(50):
        mesh.arrive(a_request(f"f{number}", prompt(100, number), tenant="flood", max_tokens=1))
    for _ in range(5):
        mesh.run_step()
    polite = mesh.arrive(a_request("polite", prompt(60, 80), tenant="polite", max_tokens=1))

    # Two passes are in flight, one prompt of the flood has begun and one has its turn: 200 tokens.
    assert steps_until(mesh, polite) <= 2 + 200 / 64 + 2


def test_what_a_tenant_asks_for_again_waits_behind_what_it_asked_for_before() -> None:
    mesh = a_mesh()
    first = [mesh.arrive(a_request(f"f{n}", prompt(100, n), max_tokens=1)) for n in range(20)]
    later = mesh.arrive(a_request("later", prompt(100, 50), max_tokens=1))
    steps_until(mesh, later)

    assert all(client.over for client in first)


def test_of_two_prompts_the_one_whose_deadline_is_closer_goes_first() -> None:
    mesh = a_mesh()
    mesh.arrive(a_request("first", prompt(600), max_tokens=1))
    long = mesh.arrive(a_request("long", prompt(1500, 2), max_tokens=1))  # due in 2.9 s
    short = mesh.arrive(a_request("short", prompt(60, 3), max_tokens=1))  # due in 0.12 s
    steps_until(mesh, short)

    assert not long.over
    assert long.output == []


def test_priority_comes_before_deadlines() -> None:
    mesh = a_mesh()
    mesh.arrive(a_request("first", prompt(300), max_tokens=1))
    short = mesh.arrive(a_request("short", prompt(60, 3), max_tokens=1))
    urgent = mesh.arrive(a_request("urgent", prompt(1500, 2), max_tokens=1, priority=-1))
    steps_until(mesh, urgent)

    assert not short.over


def test_first_tokens_that_come_after_their_target_are_counted() -> None:
    mesh = a_mesh(target_ttft_ms=100.0)
    for number in range(8):  # 16 passes of 20 ms: about six of them are within 100 ms
        mesh.arrive(a_request(f"r{number}", prompt(128, number), max_tokens=1))
    mesh.run_until_idle()

    assert 4 <= mesh.core.stats.num_late_first_tokens <= 7


def test_without_a_target_no_first_token_is_late() -> None:
    mesh = a_mesh()
    for number in range(8):
        mesh.arrive(a_request(f"r{number}", prompt(128, number), max_tokens=1))
    mesh.run_until_idle()

    assert mesh.core.stats.num_late_first_tokens == 0


def test_each_tenant_is_charged_for_its_part_of_each_pass() -> None:
    mesh = a_mesh()
    for number in range(4):
        mesh.arrive(a_request(f"a{number}", prompt(300, number), tenant="a", max_tokens=2))
        mesh.arrive(a_request(f"b{number}", prompt(100, 50 + number), tenant="b", max_tokens=2))
    mesh.run_until_idle()

    charged = mesh.core.time_account.by_tenant
    total_ms = sum(mesh.workers["w"].pass_ms(plan) for plan in mesh.sent)
    assert sum(charged.values()) == pytest.approx(total_ms, rel=1e-3)
    # Three quarters of the tokens; what is fixed per pass is shared by who is in it.
    assert charged["a"] / total_ms == pytest.approx(0.75, abs=0.05)


def test_tenants_that_keep_asking_get_equal_time_whatever_the_size_of_their_requests() -> None:
    mesh = a_mesh(max_num_seqs=2)
    for number in range(60):
        mesh.arrive(a_request(f"big{number}", prompt(300, number), tenant="big", max_tokens=1))
        for part in range(5):
            name = f"small{number}-{part}"
            mesh.arrive(a_request(name, prompt(30, number + part), tenant="small", max_tokens=1))
    for _ in range(150):
        mesh.run_step()

    # The flood of 60 * 300 tokens against one of 60 * 5 * 30: only half of it has run.
    charged = mesh.core.time_account.by_tenant
    assert charged["big"] / charged["small"] == pytest.approx(1.0, abs=0.35)


def test_a_cancelled_request_is_not_held_against_its_tenant() -> None:
    mesh = a_mesh()
    mesh.arrive(a_request("other", prompt(400), tenant="other", max_tokens=40))
    for number in range(30):
        mesh.arrive(a_request(f"gone{number}", prompt(500, number), tenant="a", max_tokens=1))
    for number in range(30):
        mesh.cancel(f"gone{number}")
    rival = mesh.arrive(a_request("rival", prompt(500, 3), tenant="b", max_tokens=1))
    again = mesh.arrive(a_request("again", prompt(100, 2), tenant="a", max_tokens=1))
    steps_until(mesh, again)

    assert not rival.over
