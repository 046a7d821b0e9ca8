"""From options to loads."""

import random
from collections.abc import Sequence
from pathlib import Path

from common.errors import ConfigError
from common.workload.arrivals import Arrivals, ClosedLoop, OpenLoop, Recorded
from common.workload.lengths import PAPER_SPREAD, Lengths
from common.workload.load import Load, make_load
from common.workload.options import (
    DEFAULT_INPUT_LEN,
    DEFAULT_OUTPUT_LEN,
    OPEN_LOOP_PROMPTS,
    LengthOptions,
)
from common.workload.timeline import RequestShape
from common.workload.trace import Trace, parse_trace

MAX_OUTPUT_TOKENS = 2**31 - 1  # outputs are not cut: what was asked for is what is measured


class LoadMaker:
    """Draws loads of one description: equal seeds and keys give equal loads.

    Raises:
        ConfigError: the lengths make no sense, or the trace file cannot be read.
    """

    def __init__(self, options: LengthOptions, num_prompts: int | None, seed: int) -> None:
        self._num_prompts = num_prompts
        self._seed = seed
        self._source = _lengths(options) if options.trace is None else _read_trace(options.trace)

    @property
    def recorded(self) -> Recorded | None:
        """When the requests of the trace came, if there is one that says so."""
        if isinstance(self._source, Lengths) or self._source.times_s is None:
            return None
        return Recorded(self._source.times_s[: self._num_prompts])

    def load(self, arrivals: Arrivals, key: str) -> Load:
        """A load; loads of other keys have other requests."""
        draw = random.Random(f"{self._seed} {key}")  # noqa: S311  reproducible, no secret
        return make_load(self._shapes(arrivals, draw), arrivals, draw)

    def warm_up(self, num_requests: int) -> Load:
        """Few requests, two at a time, of the same kind."""
        draw = random.Random(f"{self._seed} warm-up")  # noqa: S311
        shapes = self._shapes(ClosedLoop(1), draw)[:num_requests]
        return make_load(shapes, ClosedLoop(2), draw)

    def _shapes(self, arrivals: Arrivals, draw: random.Random) -> Sequence[RequestShape]:
        match self._source:
            case Trace(shapes=shapes):
                return shapes[: self._num_prompts]
            case Lengths() as lengths:
                num_prompts = self._num_prompts or _default_num_prompts(arrivals)
                return [lengths.draw(draw) for _ in range(num_prompts)]


def _default_num_prompts(arrivals: Arrivals) -> int:
    """DeepSpeed-FastGen's benchmark takes 4 * clients + 32 (at first it was always 512)."""
    match arrivals:
        case ClosedLoop(num_clients=num_clients):
            return 4 * num_clients + 32
        case OpenLoop():
            return OPEN_LOOP_PROMPTS
        case Recorded(times_s=times):
            return len(times)


def _lengths(options: LengthOptions) -> Lengths:
    spread = PAPER_SPREAD if options.length_spread is None else options.length_spread
    try:
        return Lengths(
            options.input_len or DEFAULT_INPUT_LEN,
            options.output_len or DEFAULT_OUTPUT_LEN,
            options.length_distribution,
            spread,
            options.max_input_len,
            MAX_OUTPUT_TOKENS,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _read_trace(path: Path) -> Trace:
    try:
        return parse_trace(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
