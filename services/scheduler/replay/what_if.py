"""The same arrivals under other options: both runs simulated, so that only the options differ.

Recorded results do not fit other plans, so workers are simulated: a pass takes what a cost model
fitted to the record's own passes says, times the errors of that fit, in their recorded order. What
is sampled is known from the record, since tokens depend on the sequence and not on the passes.
The scheduler as it was is simulated, too: what that differs from the record is what to distrust.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from statistics import median
from typing import Final

import msgspec

from common.errors import RecordError
from common.messages import GenerateRequest, SamplingParams, StepTiming
from common.workload.measures import Summary, summarize
from common.workload.timeline import Timeline
from services.scheduler import record
from services.scheduler.core import CoreOptions, SchedulerCore
from services.scheduler.cost_model import NS_PER_MS, CostModel, StepShape
from services.scheduler.events import Event, Instruction, SendStep
from services.scheduler.replay.differences import brief, first_differences
from services.scheduler.replay.recorded_load import (
    Pass,
    RecordedLoad,
    RecordedRequest,
    WorkerChange,
)
from services.scheduler.simulation.host import HostCosts
from services.scheduler.simulation.simulator import SimulationStalled, Simulator
from services.scheduler.simulation.worker import SimulatedWorker

MAX_FITTED: Final = 4000  # passes that a cost model is fitted to, evenly spread over the record
MIN_FITTED: Final = 64  # passes from which a worker is known; else it is taken for a mean one
FILLER_ID: Final = 1  # sampled where the record ends before the output does


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run over the measured requests, recorded or simulated."""

    summary: Summary
    num_passes: int
    mean_pass_tokens: float
    max_pass_tokens: int
    num_preemptions: int | None  #: None: a record does not count them


@dataclass(frozen=True, slots=True)
class FirstDifference:
    """The first decision that the two simulated schedulers took differently."""

    number: int  #: equal decisions before it
    now: float  #: seconds since the record's beginning
    event: str
    differences: list[str]  #: one line each


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The answer."""

    recorded: Outcome
    as_recorded: Outcome  #: simulated with the recorded options
    changed: Outcome  #: simulated with the others
    first_difference: FirstDifference | None
    num_measured: int  #: requests that began and ended in the record
    relative_error: float  #: median of |measured - predicted| / predicted over the record's passes


def what_if(load: RecordedLoad, options: CoreOptions) -> WhatIf:
    """Compare the recorded scheduler with one of other options.

    Raises:
        RecordError: nothing in the record can be compared: no pass or no whole request.
    """
    num_measured = sum(request.is_measured for request in load.requests)
    if not num_measured or not load.passes:
        raise RecordError(
            f"the record has {num_measured} requests from beginning to end and "
            f"{len(load.passes)} passes: nothing can be compared"
        )
    devices = _fit(load)
    as_recorded = _Run(load, load.options, devices)
    changed = _Run(load, options, devices)
    return WhatIf(
        recorded=_recorded_outcome(load),
        as_recorded=as_recorded.outcome(),
        changed=changed.outcome(),
        first_difference=_first_difference(as_recorded.decisions, changed.decisions),
        num_measured=num_measured,
        relative_error=median(
            abs(error - 1) for device in devices.values() for error in device.errors
        ),
    )


@dataclass(frozen=True, slots=True)
class _Device:
    """What passes of a worker took, as found in the record."""

    model: CostModel
    errors: list[float]  #: measured / predicted of every recorded pass, in order
    host: HostCosts


class _RecordedPassTime:
    """The fitted model's prediction times the next of its recorded errors, for ever."""

    def __init__(self, device: _Device) -> None:
        self._predict_ms = device.model.predict_ms
        self._errors = cycle(device.errors)

    def ms(self, shape: StepShape) -> float:
        return self._predict_ms(shape) * next(self._errors)


def _fit(load: RecordedLoad) -> dict[str, _Device]:
    """The device of every worker that was there, by instance id."""
    joins = {change.worker: change.join for change in load.worker_changes if change.join}
    passes_of: dict[str, list[Pass]] = {worker: [] for worker in joins}
    for a_pass in load.passes:
        passes_of[a_pass.worker].append(a_pass)
    return {
        worker: _fit_device(
            joins[worker].calibration, passes if len(passes) >= MIN_FITTED else load.passes
        )
        for worker, passes in passes_of.items()
    }


def _fit_device(calibration: Sequence[StepTiming], passes: Sequence[Pass]) -> _Device:
    """Timings of a calibration count like passes: they know of sizes that passes may not have."""
    calibrated = [
        (
            StepShape(
                timing.num_tokens,
                timing.num_context_tokens,
                timing.num_attended_tokens,
                timing.num_sequences,
                timing.num_logits,
            ),
            timing.step_ns / NS_PER_MS,
        )
        for timing in calibration
    ]
    ran = [(a_pass.shape, a_pass.ms) for a_pass in passes]
    stride = -(-len(ran) // MAX_FITTED)
    model = CostModel.from_observations([*calibrated, *ran[::stride]])
    errors = [ms / model.predict_ms(shape) for shape, ms in ran]
    waits_ms = [a_pass.wait_ms for a_pass in passes if a_pass.wait_ms is not None]
    pass_ms = max(0.0, median(waits_ms)) if waits_ms else 0.0
    return _Device(model, errors, HostCosts(pass_ms=pass_ms))


class _Run:
    """One simulation of the load."""

    def __init__(
        self, load: RecordedLoad, options: CoreOptions, devices: Mapping[str, _Device]
    ) -> None:
        self.decisions: list[bytes] = []  #: as `record.Decided`
        self._load = load
        self._devices = devices
        self._pass_tokens: list[int] = []
        self._timelines: list[Timeline] = []  # of measured requests that have ended
        self._num_left = sum(request.is_measured for request in load.requests)
        self._outputs = _Outputs(load.requests)
        core = SchedulerCore(options)
        self._simulator = Simulator(core, HostCosts(), self._ended, self._observe)
        for change in load.worker_changes:
            self._at(change.now, partial(self._change_worker, change))
        for number, request in enumerate(load.requests):
            self._at(request.timeline.sent_at, partial(self._send, number))
            if request.cancelled_at is not None:
                self._at(request.cancelled_at, partial(self._simulator.cancel, str(number)))
        with suppress(SimulationStalled):  # the last worker went, and with it the rest of the load
            self._simulator.run()

    def outcome(self) -> Outcome:
        """What came of it."""
        num_preemptions = self._simulator.core.stats.num_preemptions
        return _outcome(self._timelines, self._pass_tokens, num_preemptions)

    def _at(self, now: float, action: Callable[[], None]) -> None:
        self._simulator.at(now - self._load.began_at, action)

    def _send(self, number: int) -> None:
        if self._num_left:
            self._simulator.send(self._outputs.message(number))

    def _change_worker(self, change: WorkerChange) -> None:
        simulator = self._simulator
        if change.join is not None:
            device = self._devices[change.worker]
            pass_time = _RecordedPassTime(device)
            worker = SimulatedWorker(change.join, pass_time, self._outputs.sample, device.host)
            simulator.attach(change.worker, worker)
        elif change.worker in simulator.workers:
            (simulator.drain if change.is_drain else simulator.lose)(change.worker)

    def _ended(self, request_id: str, timeline: Timeline) -> None:
        if not self._load.requests[int(request_id)].is_measured:
            return
        self._timelines.append(timeline)
        self._num_left -= 1
        if not self._num_left:
            for number in range(len(self._load.requests)):
                self._simulator.cancel(str(number))  # what is still open is of no interest

    def _observe(self, event: Event, instructions: list[Instruction], now: float) -> None:
        encoded = msgspec.Raw(record.encode_instructions(instructions))
        self.decisions.append(record.encode(record.Decided(now, event, encoded)))
        for instruction in instructions:
            if isinstance(instruction, SendStep) and instruction.shape.num_tokens:
                self._pass_tokens.append(instruction.shape.num_tokens)


class _Outputs:
    """Messages of a load, and the tokens that answer them: those of the record."""

    def __init__(self, requests: Sequence[RecordedRequest]) -> None:
        self._requests = requests
        #: by number: the id that ends an output that a stop string ended, one that it has not
        self._stop_ids: dict[int, int] = {}

    def message(self, number: int) -> GenerateRequest:
        """The request under its number, which its seed is, too, so that `sample` can tell."""
        request = self._requests[number]
        sampling = request.message.sampling
        stop_token_ids = sampling.stop_token_ids
        if request.stopped:
            used = {*request.output_ids, *stop_token_ids}
            stop_id = self._stop_ids[number] = min(set(range(len(used) + 1)) - used)
            stop_token_ids = (*stop_token_ids, stop_id)
        sampling = msgspec.structs.replace(sampling, seed=number, stop_token_ids=stop_token_ids)
        return msgspec.structs.replace(request.message, request_id=str(number), sampling=sampling)

    def sample(self, sampling: SamplingParams, num_before: int) -> int:
        """The token that followed so many others, whatever the pass."""
        number = sampling.seed
        output_ids = self._requests[number].output_ids
        if number in self._stop_ids and num_before + 1 >= len(output_ids):
            return self._stop_ids[number]
        return output_ids[num_before] if num_before < len(output_ids) else FILLER_ID


def _recorded_outcome(load: RecordedLoad) -> Outcome:
    timelines = [request.timeline for request in load.requests if request.is_measured]
    return _outcome(timelines, [a_pass.shape.num_tokens for a_pass in load.passes], None)


def _outcome(
    timelines: Sequence[Timeline], pass_tokens: Sequence[int], num_preemptions: int | None
) -> Outcome:
    return Outcome(
        summary=summarize(timelines),
        num_passes=len(pass_tokens),
        mean_pass_tokens=sum(pass_tokens) / max(1, len(pass_tokens)),
        max_pass_tokens=max(pass_tokens, default=0),
        num_preemptions=num_preemptions,
    )


def _first_difference(expected: Sequence[bytes], got: Sequence[bytes]) -> FirstDifference | None:
    for number, pair in enumerate(zip(expected, got, strict=False)):
        if pair[0] != pair[1]:
            one, other = (record.decode(data) for data in pair)
            assert isinstance(one, record.Decided)  # noqa: S101  nothing else was encoded
            assert isinstance(other, record.Decided)  # noqa: S101
            lines = first_differences(_answer(one), _answer(other), "answer")
            return FirstDifference(number, one.now, brief(one.event), lines)
    return None


def _answer(decided: record.Decided) -> list[Instruction]:
    return record.decode_instructions(bytes(decided.instructions))
