"""The same arrivals under other options, in a world made from the record alone."""

import random

import msgspec
import pytest

from common.errors import ConfigError, RecordError
from common.workload.arrivals import ClosedLoop
from common.workload.lengths import Lengths
from common.workload.load import draw_load
from services.scheduler import checkpoint, record
from services.scheduler.core import CoreOptions, SchedulerCore
from services.scheduler.events import Event, Instruction, RequestCancelled, StepFinished
from services.scheduler.policies import make_policy
from services.scheduler.replay.options import ReplayConfig, changed_options
from services.scheduler.replay.recorded_load import RecordedLoad, read_load
from services.scheduler.replay.what_if import WhatIf, what_if
from services.scheduler.simulation.clients import Clients
from services.scheduler.simulation.host import HostCosts
from services.scheduler.simulation.pass_time import CurvePassTime
from services.scheduler.simulation.requests import Requests
from services.scheduler.simulation.scenario import Machine, make_worker
from tests.support.recorded_mesh import RecordedMesh
from tests.support.scheduler_mesh import a_request

OPTIONS = CoreOptions(
    policy=make_policy("splitfuse"),
    token_budget=256,
    max_num_seqs=64,
    max_queued_tokens=None,
    caching=True,
)


def recorded_load() -> RecordedLoad:
    """Eight clients with prompts of about 600 tokens, two workers of two speeds."""
    core = SchedulerCore(OPTIONS)
    entries: list[record.Entry] = [record.StateSaved(0.0, checkpoint.save(core))]

    def observe(event: Event, instructions: list[Instruction], now: float) -> None:
        encoded = msgspec.Raw(record.encode_instructions(instructions))
        entries.append(record.Decided(now, event, encoded))

    load = draw_load(Lengths(600, 20), ClosedLoop(8), 80, random.Random(1))
    requests = Requests(vocab_size=1000, max_tokens=200)
    host = HostCosts(pass_ms=1.0)
    clients = Clients(core, load, requests, host, lambda _: None, observe=observe)
    for number, scale in enumerate((1.0, 1.5)):
        curve = CurvePassTime(((16, 10.0), (256, 40.0), (1024, 150.0)), scale=scale)
        machine = Machine(curve, host, num_blocks=2000, block_size=16, max_model_len=4096)
        clients.simulator.attach(f"w{number}", make_worker(machine, requests, str(number)))
    clients.simulator.run()
    return read_load(entries)


@pytest.fixture(scope="module")
def load() -> RecordedLoad:
    return recorded_load()


def config(*flags: str) -> ReplayConfig:
    from common.config import load_config

    return load_config(ReplayConfig, ["some.record", *flags])


def ask(load: RecordedLoad, *flags: str) -> WhatIf:
    return what_if(load, changed_options(load.options, config(*flags)))


def test_with_the_recorded_options_the_simulation_is_close_to_the_record(
    load: RecordedLoad,
) -> None:
    answer = what_if(load, load.options)

    assert answer.num_measured == 80
    assert answer.first_difference is None
    assert answer.as_recorded == answer.changed
    recorded, simulated = answer.recorded.summary, answer.as_recorded.summary
    assert recorded.ttft_s is not None
    assert recorded.tbt_s is not None
    assert simulated.ttft_s is not None
    assert simulated.tbt_s is not None
    assert simulated.num_failed == 0
    assert simulated.ttft_s.p50 == pytest.approx(recorded.ttft_s.p50, rel=0.1)
    assert simulated.tbt_s.p50 == pytest.approx(recorded.tbt_s.p50, rel=0.1)
    assert simulated.tbt_s.p99 == pytest.approx(recorded.tbt_s.p99, rel=0.1)


def test_another_policy_shows_where_it_decides_otherwise_and_what_that_does(
    load: RecordedLoad,
) -> None:
    answer = ask(load, "--scheduling-policy", "prefill-first")

    assert answer.as_recorded.max_pass_tokens == 256
    assert answer.changed.max_pass_tokens > 600  # whole prompts
    assert answer.first_difference is not None
    # 709 tokens in three even passes, or in one.
    assert (
        "answer[0].shape.num_tokens: expected 240, got 709" in answer.first_difference.differences
    )
    before, after = answer.as_recorded.summary.tbt_s, answer.changed.summary.tbt_s
    assert before is not None
    assert after is not None
    assert after.p99 > 1.5 * before.p99  # generation waits for whole prompts


def test_smaller_passes_shorten_the_longest_gaps(load: RecordedLoad) -> None:
    answer = ask(load, "--max-num-batched-tokens", "64")

    assert answer.changed.max_pass_tokens == 64
    before, after = answer.as_recorded.summary.tbt_s, answer.changed.summary.tbt_s
    assert before is not None
    assert after is not None
    assert after.p99 < 0.7 * before.p99


def test_outputs_are_those_of_the_record_whatever_ended_them() -> None:
    mesh = RecordedMesh()
    mesh.join()
    for number in range(2):
        mesh.arrive(a_request(f"stopped{number}", [1, 2, number], max_tokens=30))
        mesh.arrive(a_request(f"eos{number}", [5, 6, number], max_tokens=60, eos=True))
    for _ in range(12):
        mesh.run_step()
    for number in range(2):
        client = mesh.clients["o", f"stopped{number}"]
        client.cancelled = True
        mesh.handle(RequestCancelled("o", f"stopped{number}", "stop_string"))
    mesh.run_until_idle()
    load = read_load(mesh.entries)

    answer = what_if(load, load.options)

    num_tokens = sum(request.timeline.num_output_tokens for request in load.requests)
    assert answer.num_measured == 4
    assert answer.as_recorded.summary.num_failed == 0
    rate, seconds = answer.as_recorded.summary.output_tokens_per_s, answer.as_recorded.summary
    assert round(rate * seconds.duration_s) == num_tokens


def test_a_record_without_a_whole_request_has_no_answer() -> None:
    mesh = RecordedMesh()
    mesh.join()
    mesh.arrive(a_request("r", [1, 2, 3]))
    load = read_load(mesh.entries)

    with pytest.raises(RecordError, match="0 requests from beginning to end and 0 passes"):
        what_if(load, load.options)


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (("--max-num-batched-tokens", "64"), "token_budget", 64),
        (("--max-num-batched-tokens", "0"), "token_budget", None),
        (("--target-tbt-ms", "25"), "target_tbt_ms", 25.0),
        (("--target-ttft-ms", "500"), "target_ttft_ms", 500.0),
        (("--max-num-seqs", "3"), "max_num_seqs", 3),
        (("--no-enable-prefix-caching",), "caching", False),
        (("--partition", "greedy"), "policy", make_policy("splitfuse", "greedy")),
        (("--scheduling-policy", "orca"), "policy", make_policy("orca")),
    ],
)
def test_an_option_replaces_the_recorded_one_and_leaves_the_others(
    flags: tuple[str, ...], field: str, value: object
) -> None:
    changed = changed_options(OPTIONS, config(*flags))

    assert getattr(changed, field) == value
    others = {name for name in CoreOptions.__slots__ if name != field}
    assert {name: getattr(changed, name) for name in others} == {
        name: getattr(OPTIONS, name) for name in others
    }


def test_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="does not cut them"):
        config("--scheduling-policy", "orca", "--target-tbt-ms", "20")
    orca = changed_options(OPTIONS, config("--scheduling-policy", "orca"))
    with pytest.raises(ConfigError, match="give --scheduling-policy, too"):
        changed_options(orca, config("--target-tbt-ms", "20"))


def test_variables_for_serving_make_no_what_if(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITFUSE_SCHEDULING_POLICY", "orca")

    assert not config().is_what_if
    assert config("--scheduling-policy", "orca").is_what_if


def test_a_result_whose_step_is_not_in_flight_is_no_pass() -> None:
    mesh = RecordedMesh()
    mesh.join()
    mesh.arrive(a_request("r", [1, 2, 3], max_tokens=2))
    mesh.run_until_idle()
    steps = [
        entry
        for entry in mesh.entries
        if isinstance(entry, record.Decided) and isinstance(entry.event, StepFinished)
    ]

    assert read_load([*mesh.entries, *steps]).passes == read_load(mesh.entries).passes
