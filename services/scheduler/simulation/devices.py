"""From options to the machine that is simulated, and what is assumed of it."""

from dataclasses import dataclass

from common import calibration_file
from common.errors import ConfigError
from common.messages import StepTiming
from services.scheduler.cost_model import CostModel, StepShape, timing_of
from services.scheduler.simulation.gpus import gpu_named
from services.scheduler.simulation.host import HostCosts
from services.scheduler.simulation.model_shape import read_model_shape
from services.scheduler.simulation.options import (
    DEFAULT_KV_CACHE_TOKENS,
    DeviceOptions,
    HostOptions,
    SimulationOptions,
)
from services.scheduler.simulation.pass_time import CurvePassTime, FittedPassTime, PassTime
from services.scheduler.simulation.roofline import RooflinePassTime
from services.scheduler.simulation.scenario import Machine

DEFAULT_MODEL_LEN = 8192  # tokens, where nothing says how long the model's context is
GPU_DEVICE = "cuda:0"

#: passes that a worker measures before it joins
_CALIBRATED = (
    *(StepShape(n, n * c, n * c, n, n) for n in (1, 8, 32, 64) for c in (64, 1024)),
    *(
        StepShape(n, c + n, n * c + n * (n + 1) // 2, 1, 1)
        for n in (8, 32, 128, 512, 1024, 2048)
        for c in (0, 1024)
    ),
)


@dataclass(frozen=True, slots=True)
class Simulated:
    """A machine, and what a reader has to know of it."""

    machine: Machine
    assumptions: list[str]  #: one sentence each


@dataclass(frozen=True, slots=True)
class _Device:
    pass_time: PassTime
    name: str
    calibration: tuple[StepTiming, ...]
    kv_cache_tokens: int
    max_model_len: int
    vocab_size: int
    assumptions: list[str]


def make_machine(options: SimulationOptions) -> Simulated:
    """The machine that the options describe.

    Raises:
        ConfigError: a file cannot be used, a GPU is unknown, or the model does not fit it.
    """
    device = _device(options)
    num_blocks = device.kv_cache_tokens // options.block_size
    max_model_len = options.max_model_len or device.max_model_len
    if num_blocks < 1:
        raise ConfigError(
            f"{device.kv_cache_tokens} tokens of KV do not fill a block of {options.block_size}"
        )
    machine = Machine(
        pass_time=device.pass_time,
        host=_host(options),
        num_blocks=num_blocks,
        block_size=options.block_size,
        max_model_len=max_model_len,
        vocab_size=device.vocab_size,
        device=device.name,
        calibration=device.calibration,
        noise=options.noise,
        interruptions_per_s=options.interruptions_per_s,
        interruption_ms=options.interruption_ms,
    )
    memory = (
        f"{num_blocks * options.block_size:,} tokens of KV per worker in blocks of "
        f"{options.block_size}, sequences of at most {max_model_len:,} tokens"
    )
    return Simulated(machine, [*device.assumptions, memory, *_about_host(options)])


def _device(options: DeviceOptions) -> _Device:
    if options.calibration is not None:
        return _calibrated(options)
    if options.curve is not None:
        return _on_curve(options, options.curve)
    return _on_gpu(options)


def _calibrated(options: DeviceOptions) -> _Device:
    assert options.calibration is not None  # noqa: S101 - the caller has looked
    file = calibration_file.read(options.calibration)
    if not file.timings:
        raise ConfigError(f"{options.calibration} has no timings")
    return _Device(
        pass_time=FittedPassTime(CostModel.from_timings(file.timings)),
        name=file.device,
        calibration=file.timings,
        kv_cache_tokens=options.kv_cache_tokens or DEFAULT_KV_CACHE_TOKENS,
        max_model_len=DEFAULT_MODEL_LEN,
        vocab_size=DEFAULT_KV_CACHE_TOKENS,
        assumptions=[
            f"passes as measured of {file.model} ({file.dtype}, {file.backend}) on {file.machine}"
        ],
    )


def _on_curve(options: DeviceOptions, points: list[tuple[int, float]]) -> _Device:
    try:
        curve = CurvePassTime(points, ms_per_context_token=options.context_token_us / 1e3)
    except ValueError as error:
        raise ConfigError(f"--curve: {error}") from None
    return _Device(
        pass_time=curve,
        name=GPU_DEVICE,
        calibration=timings_of(curve),
        kv_cache_tokens=options.kv_cache_tokens or DEFAULT_KV_CACHE_TOKENS,
        max_model_len=DEFAULT_MODEL_LEN,
        vocab_size=DEFAULT_KV_CACHE_TOKENS,
        assumptions=[
            f"passes on the given curve of {len(points)} points, and "
            f"{options.context_token_us:g} us per token of KV read"
        ],
    )


def _on_gpu(options: DeviceOptions) -> _Device:
    assert options.gpu is not None and options.model is not None  # noqa: S101, PT018 - as above
    model, gpu = read_model_shape(options.model), gpu_named(options.gpu)
    try:
        roofline = RooflinePassTime(model, gpu, options.tensor_parallel_size, options.assumptions)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    assumed = options.assumptions
    return _Device(
        pass_time=roofline,
        name=GPU_DEVICE,
        calibration=timings_of(roofline),
        kv_cache_tokens=options.kv_cache_tokens or roofline.kv_capacity_tokens,
        max_model_len=model.max_model_len,
        vocab_size=model.vocab_size,
        assumptions=[
            f"{model.num_params / 1e9:.1f}e9 parameters in {8 * model.weight_bytes:g} bits on "
            f"{options.tensor_parallel_size} x {gpu.name}: {gpu.memory_gb:g} GB, "
            f"{gpu.memory_gb_per_s:g} GB/s, {gpu.tflops:g} TFLOPS each by its datasheet",
            f"reached of it: {assumed.memory_efficiency:.0%} of the memory bandwidth, "
            f"{assumed.flop_efficiency:.0%} of the matrix rate, {assumed.memory_utilization:.0%} "
            f"of the memory; {assumed.pass_ms:g} ms more per pass",
            *_about_links(options),
        ],
    )


def _about_links(options: DeviceOptions) -> list[str]:
    if options.tensor_parallel_size == 1:
        return []
    assumed = options.assumptions
    return [
        f"two all-reduces per layer of {assumed.all_reduce_us:g} us and more, at "
        f"{assumed.link_efficiency:.0%} of the link bandwidth"
    ]


def timings_of(pass_time: PassTime) -> tuple[StepTiming, ...]:
    """What a worker would have measured of its passes before it joins."""
    return tuple(timing_of(shape, pass_time.ms(shape)) for shape in _CALIBRATED)


def _host(options: HostOptions) -> HostCosts:
    return HostCosts(
        request_ms=options.request_ms,
        prompt_token_ms=options.prompt_token_ms,
        link_ms=options.link_ms,
        pass_ms=options.pass_ms,
        sampled_token_ms=options.sampled_token_ms,
        reply_ms=options.reply_ms,
    )


def _about_host(options: HostOptions) -> list[str]:
    given = {name: getattr(options, name) for name in HostOptions.model_fields}
    said = [f"{name.replace('_', '-')} {value:g}" for name, value in given.items() if value]
    return [f"the services around it: {', '.join(said)}" if said else "the services around it: 0"]
