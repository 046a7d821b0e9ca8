import pytest

from common.errors import ConfigError
from services.scheduler.simulation.gpus import GPUS, gpu_named


def test_names_are_found_whatever_their_case() -> None:
    assert gpu_named("h100") is GPUS["H100"]


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"'TPU' is not known; known are A100-40G, .*RTX4090"):
        gpu_named("TPU")
