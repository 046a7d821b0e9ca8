"""The arms of the comparison: a policy on an engine, and the paper's loads."""

import random
from dataclasses import dataclass
from functools import cache

from benchmarks.paper import reported
from common.workload.arrivals import ClosedLoop
from common.workload.lengths import Lengths
from common.workload.load import Load, draw_load
from common.workload.measures import PAPER_SLAS, Summary, summarize
from common.workload.timeline import Timeline
from services.scheduler.core import CoreOptions
from services.scheduler.policies import PolicyName, make_policy
from services.scheduler.simulation.host import HostCosts
from services.scheduler.simulation.model_shape import ModelShape
from services.scheduler.simulation.pass_time import CurvePassTime
from services.scheduler.simulation.scenario import Machine, Scenario, simulate

LLAMA_2_70B = ModelShape(
    num_layers=80,
    hidden_size=8192,
    num_heads=64,
    num_kv_heads=8,
    head_size=128,
    intermediate_size=28672,
    vocab_size=32000,
)
MEMORY_BYTES = 4 * 80e9
MEMORY_UTILIZATION = 0.9
BLOCK_SIZE = 64  # tokens, as FastGen has it for heads of 128 numbers
MAX_NUM_SEQS = 768  # FastGen's max_ragged_sequence_count in the paper's script
MAX_MODEL_LEN = 4096 + 512  # prompts are cut at 4,000 tokens, and outputs are drawn beside them


@dataclass(frozen=True, slots=True)
class Engine:
    """What multiplies and adds to the paper's curve."""

    scale: float
    ms_per_context_token: float
    ms_per_pass: float


@dataclass(frozen=True, slots=True)
class Arm:
    """One policy on one engine."""

    engine: Engine
    policy: PolicyName


def splitfuse(engine: Engine) -> Arm:
    """As FastGen's code does it: passes of 768 tokens, filled greedily."""
    return Arm(engine, "splitfuse")


def prefill_first(engine: Engine) -> Arm:
    """As vLLM did it: prompts first, whole and alone."""
    return Arm(engine, "prefill-first")


@cache
def play(
    arm: Arm,
    lengths: tuple[int, int],
    *,
    num_clients: int,
    num_requests: int = reported.NUM_REQUESTS,
    num_workers: int = 1,
    seed: int = 42,
) -> Summary:
    """One point of the paper: a closed loop of so many clients."""
    timelines = _timelines(arm, lengths, num_clients, num_requests, num_workers, seed)
    return summarize(timelines, PAPER_SLAS, num_clients)


def share_of_gaps_beyond(
    arm: Arm, lengths: tuple[int, int], limit_s: float, *, num_clients: int, seed: int
) -> float:
    """How many of the times between tokens at that point exceed a limit, 0 to 1."""
    timelines = _timelines(arm, lengths, num_clients, reported.NUM_REQUESTS, 1, seed)
    gaps = [gap for timeline in timelines for gap in timeline.gaps_s]
    return sum(gap > limit_s for gap in gaps) / len(gaps)


def _timelines(
    arm: Arm,
    lengths: tuple[int, int],
    num_clients: int,
    num_requests: int,
    num_workers: int,
    seed: int,
) -> list[Timeline]:
    load = _load(lengths, num_clients, num_requests, seed)
    scenario = Scenario(_options(arm.policy), _machine(arm.engine), num_workers)
    return simulate(scenario, load).timelines


def _load(lengths: tuple[int, int], num_clients: int, num_requests: int, seed: int) -> Load:
    drawn = Lengths(*lengths)
    return draw_load(drawn, ClosedLoop(num_clients), num_requests, random.Random(seed))


def kv_blocks() -> int:
    """KV blocks beside the weights."""
    room = MEMORY_BYTES * MEMORY_UTILIZATION - LLAMA_2_70B.num_params * LLAMA_2_70B.weight_bytes
    return int(room / LLAMA_2_70B.kv_bytes_per_token / BLOCK_SIZE)


def _machine(engine: Engine) -> Machine:
    curve = CurvePassTime(
        reported.PASS_MS,
        scale=engine.scale,
        ms_per_context_token=engine.ms_per_context_token,
        ms_per_pass=engine.ms_per_pass,
    )
    return Machine(curve, HostCosts(), kv_blocks(), BLOCK_SIZE, MAX_MODEL_LEN)


def _options(policy: PolicyName) -> CoreOptions:
    return CoreOptions(
        policy=make_policy(policy, "greedy" if policy == "splitfuse" else None),
        token_budget=reported.FASTGEN_BUDGET,
        max_num_seqs=MAX_NUM_SEQS,
        max_queued_tokens=None,
        caching=False,
    )
