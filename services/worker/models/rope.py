"""Frequencies of rotary position embeddings, with the ways in which models stretch them."""

import math

from common.errors import StartupError
from kernels.program import Rope
from services.worker.models.config import ModelConfig, RopeParameters

SUPPORTED = ("default", "linear", "llama3", "yarn")


def make_rope(config: ModelConfig) -> Rope:
    """The rope of a model whose heads turn whole.

    Raises:
        StartupError: the type is not supported, a parameter it needs is missing or out of range,
            a head has an odd size, or only a part of each head turns.
    """
    rope = config.rope
    if config.head_size % 2:
        raise StartupError(f"head_dim is {config.head_size}, but rotary embeddings turn pairs")
    if rope.rope_theta <= 1:
        raise StartupError(f"rope_theta is {rope.rope_theta}, it must be more than 1")
    if rope.partial_rotary_factor != 1.0:
        raise StartupError(
            f"partial_rotary_factor {rope.partial_rotary_factor} is not supported for "
            f"{config.architectures[0]}; only 1.0 is"
        )
    inv_freq = [rope.rope_theta ** (-i / config.head_size) for i in range(0, config.head_size, 2)]
    match rope.rope_type:
        case "default":
            return Rope(tuple(inv_freq))
        case "linear":
            factor = _needed(rope, "factor")
            return Rope(tuple(f / factor for f in inv_freq))
        case "llama3":
            return Rope(tuple(_llama3(f, rope) for f in inv_freq))
        case "yarn":
            return _yarn(inv_freq, config)
    raise StartupError(
        f"rope_type {rope.rope_type!r} is not supported; supported are {', '.join(SUPPORTED)}"
    )


def _needed(rope: RopeParameters, name: str) -> float:
    value: float | None = getattr(rope, name)
    if value is None or value <= 0:
        raise StartupError(f"rope_type {rope.rope_type!r} needs {name} > 0 in config.json")
    return value


def _llama3(frequency: float, rope: RopeParameters) -> float:
    """Long wavelengths are stretched, short ones are kept, those between are blended."""
    factor = _needed(rope, "factor")
    low, high = _needed(rope, "low_freq_factor"), _needed(rope, "high_freq_factor")
    turns = _needed(rope, "original_max_position_embeddings") * frequency / (2 * math.pi)
    if turns < low:
        return frequency / factor
    if turns > high:
        return frequency
    kept = (turns - low) / (high - low)
    return (1 - kept) * frequency / factor + kept * frequency


def _yarn(inv_freq: list[float], config: ModelConfig) -> Rope:
    """YaRN (arXiv 2309.00071): blend by how often a dimension turns in the original context."""
    rope = config.rope
    original = rope.original_max_position_embeddings or config.max_position_embeddings
    factor = _needed(rope, "factor")

    def dimension_that_turns(times: float) -> float:
        wavelengths = math.log(original / (times * 2 * math.pi))
        return config.head_size * wavelengths / (2 * math.log(rope.rope_theta))

    begin = dimension_that_turns(rope.beta_fast or 32)
    end = dimension_that_turns(rope.beta_slow or 1)
    if rope.truncate:
        begin, end = math.floor(begin), math.ceil(end)
    begin, end = max(begin, 0), min(end, config.head_size - 1)
    span = (end - begin) or 0.001  # a step, where both fall on one dimension
    stretched = []
    for i, frequency in enumerate(inv_freq):
        share = min(max((i - begin) / span, 0.0), 1.0)
        stretched.append(share * frequency / factor + (1 - share) * frequency)
    return Rope(tuple(stretched), _yarn_scale(rope, factor))


def _yarn_scale(rope: RopeParameters, factor: float) -> float:
    def temperature(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return temperature(rope.mscale) / temperature(rope.mscale_all_dim)
    return temperature(1.0)
