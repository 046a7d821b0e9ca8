"""Builders for tests of simulations."""

from common.workload.load import Load
from common.workload.timeline import RequestShape
from services.scheduler.core import CoreOptions
from services.scheduler.policies import make_policy
from services.scheduler.simulation.host import HostCosts
from services.scheduler.simulation.pass_time import CurvePassTime, PassTime
from services.scheduler.simulation.scenario import Machine, Scenario

#: 10 ms for up to 100 tokens, 0.1 ms for each one more
CURVE = CurvePassTime([(100, 10.0), (200, 20.0)])


def a_machine(
    *,
    pass_time: PassTime = CURVE,
    host: HostCosts | None = None,
    num_blocks: int = 1000,
    noise: float = 0.0,
) -> Machine:
    return Machine(
        pass_time=pass_time,
        host=host or HostCosts(),
        num_blocks=num_blocks,
        block_size=16,
        max_model_len=2048,
        vocab_size=100,
        max_num_seqs=64,
        noise=noise,
    )


def core_options(token_budget: int = 200) -> CoreOptions:
    return CoreOptions(
        policy=make_policy("splitfuse", "greedy"),
        token_budget=token_budget,
        max_num_seqs=64,
        max_queued_tokens=None,
        caching=True,
    )


def a_scenario(machine: Machine | None = None, **changes: object) -> Scenario:
    return Scenario(core=core_options(), machine=machine or a_machine(), **changes)  # type: ignore[arg-type]


def a_closed_load(num_clients: int, num_requests: int, prompt: int = 50, output: int = 4) -> Load:
    """All clients start at once."""
    return Load([RequestShape(prompt, output)] * num_requests, [0.0] * num_clients, is_closed=True)


def an_open_load(times_s: list[float], prompt: int = 50, output: int = 4) -> Load:
    return Load([RequestShape(prompt, output)] * len(times_s), times_s, is_closed=False)
