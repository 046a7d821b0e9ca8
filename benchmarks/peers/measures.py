"""From what clients saw to numbers. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from benchmarks.peers.sse_client import Answer

FOREIGN_LIMIT = 0.03  # share of the cores; above it a number is a few per cent too slow
PIECE_LIMIT = 1.02  # tokens per piece of text; above it gaps look longer than tokens take


@dataclass(frozen=True)
class Measures:
    """One load on one server in one round."""

    requests_per_s: float
    tokens_per_s: float  # prompt and output
    output_tokens_per_s: float
    decode_tokens_per_s: float  # of one stream after its first token, median over streams
    ttft_ms_p50: float
    ttft_ms_p99: float
    gap_ms_p50: float  # between pieces of text of a stream; nearly always a piece is a token
    gap_ms_p99: float
    gap_ms_worst: float
    tokens_per_piece: float
    failed: int
    foreign_cpu_share: float  # of the cores' time, taken by neither server nor client
    client_cpu_share: float


def measure(
    answers: Sequence[Answer], failed: int, foreign_cpu_share: float, client_cpu_share: float
) -> Measures:
    """Sum up the answers of one load; there is at least one.

    Throughput counts from the first request sent to the last token received, the slack at the
    end included, as a closed loop of so many requests has it.
    """
    wall_s = max(a.ended for a in answers) - min(a.began for a in answers)
    output = sum(a.output_tokens for a in answers)
    ttfts = [a.text_at[0] - a.began for a in answers]
    gaps = [after - before for a in answers for before, after in pairwise(a.text_at)] or [0.0]
    return Measures(
        requests_per_s=len(answers) / wall_s,
        tokens_per_s=(output + sum(a.prompt_tokens for a in answers)) / wall_s,
        output_tokens_per_s=output / wall_s,
        decode_tokens_per_s=median(map(decode_rate, answers)),
        ttft_ms_p50=1e3 * percentile(ttfts, 0.5),
        ttft_ms_p99=1e3 * percentile(ttfts, 0.99),
        gap_ms_p50=1e3 * percentile(gaps, 0.5),
        gap_ms_p99=1e3 * percentile(gaps, 0.99),
        gap_ms_worst=1e3 * max(gaps),
        tokens_per_piece=output / sum(len(a.text_at) for a in answers),
        failed=failed,
        foreign_cpu_share=foreign_cpu_share,
        client_cpu_share=client_cpu_share,
    )


def doubts(measures: Measures) -> list[str]:
    """What makes these numbers worth less; nothing if they are sound."""
    found = []
    if measures.foreign_cpu_share > FOREIGN_LIMIT:
        found.append(f"OTHERS USED {100 * measures.foreign_cpu_share:.1f} % OF THE PROCESSOR")
    if measures.tokens_per_piece > PIECE_LIMIT:
        found.append(f"{measures.tokens_per_piece:.2f} TOKENS CAME AT A TIME")
    if measures.failed:
        found.append(f"{measures.failed} REQUESTS FAILED")
    return found


def decode_rate(answer: Answer) -> float:
    """Tokens per second after the first; 0 if there is nothing after it."""
    duration_s = answer.ended - answer.text_at[0]
    return (answer.output_tokens - 1) / duration_s if duration_s > 0 else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie, linear between neighbours; one value at least."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
