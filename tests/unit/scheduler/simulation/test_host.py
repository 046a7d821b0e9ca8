import pytest

from services.scheduler.simulation.host import HostCosts


def test_a_request_takes_longer_to_arrive_the_longer_its_prompt_is() -> None:
    host = HostCosts(request_ms=3.0, prompt_token_ms=0.002)

    assert host.until_scheduler_s(500) == pytest.approx(0.004)


def test_negative_costs_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"link_ms is -1\.0, it must be >= 0"):
        HostCosts(link_ms=-1.0)
