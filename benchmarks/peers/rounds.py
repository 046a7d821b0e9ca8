"""The run itself: in every round each server starts once, takes every load, and ends."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.peers.closed_loop import Spell, greedy_text, run_load
from benchmarks.peers.loads import WARM_UP, Load, make_asks
from benchmarks.peers.measures import Measures, doubts
from benchmarks.peers.recipe import Peer, Places
from benchmarks.peers.server import Server, ServerFailed, serving

Say = Callable[[str], None]


@dataclass
class Visit:
    """One server in one round."""

    server: str
    round_number: int
    startup_s: float = 0.0
    first_answer_s: float = 0.0  # from its start
    peak_rss_mb: float = 0.0
    greedy_text: str = ""
    loads: dict[str, Measures] = field(default_factory=dict)
    failure: str | None = None  # what ended the visit early


@dataclass(frozen=True)
class Course:
    """What every server goes through."""

    loads: Sequence[Load]
    vocab_size: int
    spell: Spell
    say: Say


def visit(
    peer: Peer, extra_flags: tuple[str, ...], places: Places, course: Course, round_number: int
) -> Visit:
    """Start it, load it, end it. A failure is part of what is returned: others go on."""
    result = Visit(peer.name, round_number)
    try:
        with serving(peer, places, extra_flags) as server:
            result.startup_s = server.startup_s
            course.say(f"round {round_number} {peer.name}: ready after {server.startup_s:.1f} s")
            result.greedy_text = greedy_text(server)
            result.first_answer_s = time.monotonic() - server.began
            _take_loads(server, course, result)
            server.tree.look()
            result.peak_rss_mb = server.tree.peak_rss_bytes / 1e6
    except ServerFailed as failure:
        result.failure = str(failure)
        course.say(f"round {round_number} {peer.name}: FAILED: {failure}")
    return result


def _take_loads(server: Server, course: Course, result: Visit) -> None:
    number = result.round_number
    for load in (WARM_UP, *course.loads):
        if load is not WARM_UP and load.name not in server.peer.loads:
            continue
        asks = make_asks(load, number, course.vocab_size)
        measures = run_load(server, load, asks, course.spell)
        if load is not WARM_UP:
            result.loads[load.name] = measures
            where = f"round {number} {server.peer.name}: {load.name}"
            course.say(f"{where}: {summary(measures)}")


def summary(measures: Measures) -> str:
    """One line, with what makes the numbers doubtful at its end."""
    return ", ".join(
        [
            f"{measures.requests_per_s:.2f} requests/s",
            f"{measures.tokens_per_s:.0f} tokens/s",
            f"first token {measures.ttft_ms_p50:.0f} ms",
            f"gap {measures.gap_ms_p50:.1f} / P99 {measures.gap_ms_p99:.1f} ms",
            *doubts(measures),
        ]
    )
