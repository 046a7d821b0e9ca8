"""From what clients saw to numbers. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from common.workload.measures import Percentiles, has_finished, summarize
from common.workload.timeline import Timeline

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
    timelines: Sequence[Timeline], foreign_cpu_share: float, client_cpu_share: float
) -> Measures:
    """Sum up one load; at least one request of it was answered.

    Throughput counts from the first request sent to the last token received, the slack at the
    end included, as a closed loop of so many requests has it.
    """
    summary = summarize(timelines)
    none = Percentiles(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    ttft, gap = summary.ttft_s or none, summary.tbt_s or none
    return Measures(
        requests_per_s=summary.requests_per_s,
        tokens_per_s=summary.total_tokens_per_s,
        output_tokens_per_s=summary.output_tokens_per_s,
        decode_tokens_per_s=median(decode_rate(t) for t in timelines if has_finished(t)),
        ttft_ms_p50=1e3 * ttft.p50,
        ttft_ms_p99=1e3 * ttft.p99,
        gap_ms_p50=1e3 * gap.p50,
        gap_ms_p99=1e3 * gap.p99,
        gap_ms_worst=1e3 * gap.max,
        tokens_per_piece=summary.tokens_per_piece,
        failed=summary.num_failed,
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


def decode_rate(timeline: Timeline) -> float:
    """Tokens per second after the first; 0 if there is nothing after it."""
    duration_s = timeline.latency_s - timeline.ttft_s
    return (timeline.num_output_tokens - 1) / duration_s if duration_s > 0 else 0.0
