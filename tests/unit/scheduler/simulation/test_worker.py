from common.messages import Chunk, NewSequence, SamplingParams, StepPlan
from common.token_ids import pack_ids
from services.scheduler.cost_model import StepShape
from services.scheduler.simulation.host import HostCosts
from services.scheduler.simulation.pass_time import CurvePassTime
from services.scheduler.simulation.worker import SimulatedWorker
from tests.unit.scheduler.simulation.machines import a_machine

TEN_MS = CurvePassTime([(100, 10.0), (200, 20.0)])
NEW = NewSequence(1, pack_ids(range(3)), 3, 0, b"", SamplingParams())
PROMPT = StepPlan(1, (Chunk(1, 0, 3, b"", True),), (NEW,))
PROMPT_SHAPE = StepShape(3, 3, 6, 1, 1)
DECODE = StepPlan(2, (Chunk(1, 3, 1, b"", True),))
DECODE_SHAPE = StepShape(1, 4, 4, 1, 1)


def a_worker(host: HostCosts | None = None) -> SimulatedWorker:
    """Its tokens say how many output tokens came before them."""
    return SimulatedWorker(
        a_machine().join(), TEN_MS, lambda _, before: before, host or HostCosts()
    )


def test_a_pass_starts_when_its_plan_comes() -> None:
    ends_at, result = a_worker().run(PROMPT, PROMPT_SHAPE, arrives_at=5.0)

    assert ends_at == 5.010
    assert result.step_ns == 10_000_000


def test_the_next_pass_starts_when_the_one_before_it_has_ended() -> None:
    worker = a_worker()
    worker.run(PROMPT, PROMPT_SHAPE, arrives_at=5.0)

    assert worker.run(DECODE, DECODE_SHAPE, arrives_at=5.001)[0] == 5.020


def test_samples_know_how_many_output_tokens_came_before() -> None:
    worker = a_worker()
    _, first = worker.run(PROMPT, PROMPT_SHAPE, 0.0)
    _, second = worker.run(DECODE, DECODE_SHAPE, 0.0)

    assert [first.sampled[0].token_id, second.sampled[0].token_id] == [0, 1]


def test_a_plan_that_only_drops_sequences_takes_no_time() -> None:
    ends_at, result = a_worker().run(StepPlan(1, (), (), (9,)), StepShape(0, 0, 0, 0, 0), 5.0)

    assert (ends_at, result.sampled, result.step_ns) == (5.0, (), 0)


def test_sampled_tokens_make_a_pass_longer_and_the_host_parts_two_passes() -> None:
    worker = a_worker(HostCosts(sampled_token_ms=2.0, pass_ms=3.0))

    assert worker.run(PROMPT, PROMPT_SHAPE, arrives_at=0.0)[0] == 0.012
    assert worker.run(DECODE, DECODE_SHAPE, arrives_at=0.0)[0] == 0.012 + 0.003 + 0.012
