from common.messages import GenerateRequest, SamplingParams
from common.token_ids import pack_ids
from common.workload.timeline import Timeline
from services.scheduler.core import SchedulerCore
from services.scheduler.events import Event, Instruction, RequestArrived, StepFinished, Tick
from services.scheduler.simulation.host import HostCosts
from services.scheduler.simulation.simulator import CANCELLED, Simulator
from services.scheduler.simulation.worker import SimulatedWorker
from tests.unit.scheduler.simulation.machines import CURVE, a_machine, core_options


class Bench:
    """A simulator with one worker, and what has ended in it."""

    def __init__(self, num_blocks: int = 1000) -> None:
        self.ended: dict[str, Timeline] = {}
        self.events: list[Event] = []
        core = SchedulerCore(core_options())
        self.simulator = Simulator(core, HostCosts(), self.ended.__setitem__, self._observe)
        self.machine = a_machine(num_blocks=num_blocks)
        self.attach("first")

    def attach(self, name: str) -> None:
        worker = SimulatedWorker(self.machine.join(), CURVE, lambda *_: 1, HostCosts())
        self.simulator.attach(name, worker)

    def send(self, request_id: str, prompt: int = 50, output: int = 4) -> Timeline:
        sampling = SamplingParams(max_tokens=output, ignore_eos=True)
        return self.simulator.send(GenerateRequest(request_id, pack_ids(range(prompt)), sampling))

    def _observe(self, event: Event, instructions: list[Instruction], now: float) -> None:
        assert now == self.simulator.now
        self.events.append(event)


def test_the_clock_stops_where_it_is_told_to() -> None:
    bench = Bench()
    bench.send("a", output=100)
    bench.simulator.run(until_s=0.055)

    assert bench.simulator.now == 0.05  # the fifth pass has ended
    assert bench.simulator.num_open == 1


def test_a_simulation_goes_on_where_it_stopped_and_comes_to_an_end() -> None:
    bench = Bench()
    timeline = bench.send("a", output=100)
    for until_s in (0.2, 0.4, 0.6):
        bench.simulator.run(until_s)
    bench.simulator.run()
    num_ticks = sum(isinstance(event, Tick) for event in bench.events)

    assert round(timeline.latency_s, 6) == 1.0
    assert num_ticks == 2  # one a second until nothing is left to do


def test_a_cancelled_request_ends_at_once_and_frees_its_memory() -> None:
    bench = Bench()
    timeline = bench.send("a", output=100)
    bench.simulator.at(0.025, lambda: bench.simulator.cancel("a"))
    bench.simulator.run()

    assert timeline.failure == CANCELLED
    assert timeline.num_output_tokens == 2
    assert bench.ended == {"a": timeline}
    assert bench.simulator.core.stats.kv_usage == 0


def test_a_request_that_is_cancelled_before_it_arrives_never_does() -> None:
    bench = Bench()
    bench.send("a")
    bench.simulator.cancel("a")
    bench.simulator.run()

    assert not [event for event in bench.events if isinstance(event, RequestArrived)]


def test_cancelling_what_has_ended_does_nothing() -> None:
    bench = Bench()
    bench.send("a")
    bench.simulator.at(9.0, lambda: bench.simulator.cancel("a"))
    bench.simulator.run()

    assert bench.ended["a"].failure is None


def test_results_of_a_lost_worker_never_come_and_another_goes_on() -> None:
    bench = Bench()
    timeline = bench.send("a", output=5)
    bench.simulator.at(0.025, lambda: bench.simulator.lose("first"))
    bench.simulator.at(0.100, lambda: bench.attach("second"))
    bench.simulator.run()

    # two tokens, then nothing until the second worker has computed the prompt and them again
    assert [round(at, 6) for at in timeline.token_at] == [0.01, 0.02, 0.11, 0.12, 0.13]


def test_a_refused_request_ends_with_its_failure() -> None:
    bench = Bench(num_blocks=2)
    timeline = bench.send("a", prompt=33)
    bench.simulator.run()

    assert timeline.failure == "kv_cache_exceeded"
    assert "a" in bench.ended


def test_every_event_of_the_core_can_be_observed() -> None:
    bench = Bench()
    bench.send("a", output=2)
    bench.simulator.run(until_s=0.5)

    assert sum(isinstance(event, StepFinished) for event in bench.events) >= 2
    assert len(bench.events) == bench.simulator.num_events
