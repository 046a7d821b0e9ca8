import pytest

from splitfuse.restart_policy import (
    FIRST_START_ATTEMPTS,
    LONGEST_DELAY_S,
    GiveUp,
    Restart,
    RestartPolicy,
    describe_exit,
)


def test_delays_double_from_a_quarter_second_to_ten() -> None:
    policy = RestartPolicy()

    delays = [policy.ended(1, uptime_s=1, mesh_was_ready=True) for _ in range(8)]

    assert delays == [Restart(s) for s in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0)]


def test_a_service_that_was_up_for_a_minute_is_restarted_at_once_again() -> None:
    policy = RestartPolicy()
    for _ in range(5):
        policy.ended(1, uptime_s=1, mesh_was_ready=True)

    assert policy.ended(-9, uptime_s=60, mesh_was_ready=True) == Restart(0.25)


def test_thousands_of_failures_still_wait_no_longer_than_the_limit() -> None:
    policy = RestartPolicy()
    verdicts = [policy.ended(1, uptime_s=0, mesh_was_ready=True) for _ in range(5000)]

    assert verdicts[-1] == Restart(LONGEST_DELAY_S)


@pytest.mark.parametrize("exit_code", [2, 3])
def test_a_service_that_cannot_start_ends_a_mesh_that_never_worked(exit_code: int) -> None:
    verdict = RestartPolicy().ended(exit_code, uptime_s=0.3, mesh_was_ready=False)

    assert isinstance(verdict, GiveUp)
    assert verdict.exit_code == exit_code


@pytest.mark.parametrize("exit_code", [2, 3])
def test_in_a_mesh_that_has_worked_it_is_tried_again(exit_code: int) -> None:
    verdict = RestartPolicy().ended(exit_code, uptime_s=0.3, mesh_was_ready=True)

    assert isinstance(verdict, Restart)


def test_a_service_that_keeps_crashing_before_the_mesh_was_ready_ends_it() -> None:
    policy = RestartPolicy()
    *first, last = [
        policy.ended(1, uptime_s=0.3, mesh_was_ready=False) for _ in range(FIRST_START_ATTEMPTS)
    ]

    assert all(isinstance(verdict, Restart) for verdict in first)
    assert last == GiveUp(3, "failed 3 times (exit code 1)")


def test_a_signal_is_named_as_such() -> None:
    assert describe_exit(-9) == "killed by signal 9"
