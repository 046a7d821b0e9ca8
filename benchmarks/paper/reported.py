"""What DeepSpeed-FastGen reported for Llama-2-70B on four A100-80GB.

From its blog of November 2023 (section numbers there) and arXiv 2401.08671. Points of figures are
read off plots, to about 3 %.
"""

from dataclasses import dataclass

#: section 3A: tokens in a pass, and its milliseconds
PASS_MS = ((64, 25.0), (512, 69.0), (768, 94.0), (1024, 130.0), (2048, 255.0))
PASS_TFLOPS_AT_768 = 215.0

CLIENTS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32)
NUM_REQUESTS = 512  # per point
FASTGEN_BUDGET = 768  # tokens per pass
LENGTHS = ((1200, 128), (2600, 60))  # mean prompt, mean output

#: mean latency in seconds over CLIENTS, by lengths; throughput is clients / latency
FASTGEN_LATENCY_S = {
    (1200, 128): (5.8, 6.1, 6.7, 7.1, 7.6, 8.9, 10.2, 11.7, 12.8, 14.1, 15.5),
    (2600, 60): (3.2, 3.7, 4.7, 5.6, 6.75, 8.8, 11.0, 13.3, 15.7, 18.3, 20.9),
}
VLLM_LATENCY_S = {
    (1200, 128): (7.0, 7.5, 8.3, 9.0, 9.6, 11.2, 12.6, 14.0, 16.2, 18.2, 19.5),
    (2600, 60): (3.7, 4.4, 5.6, 6.8, 8.1, 10.9, 13.6, 16.2, 18.8, 21.3, 23.9),
}

TOKEN_LATENCY_LENGTHS = (2600, 128)
TOKEN_LATENCY_CLIENTS = 16
FASTGEN_TOKEN_MS = {"p50": 72.0, "p90": 185.0, "p95": 188.0}
VLLM_TOKEN_MS = {"p50": 77.0, "p90": 385.0, "p95": 695.0}

GOODPUT_LENGTHS = (2600, 60)


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest effective throughput of a curve, and where it is."""

    requests_per_s: float
    clients: int


#: by the SLA's tokens per second
FASTGEN_GOODPUT = {2: Peak(1.42, 16), 4: Peak(1.42, 16), 6: Peak(0.77, 6)}
VLLM_GOODPUT = {2: Peak(0.89, 12), 4: Peak(0.63, 6), 6: Peak(0.40, 2)}

REPLICAS = (1, 2, 4, 8, 16)
REPLICA_CLIENTS = 16  # per replica
REPLICA_REQUESTS = 256  # per replica
REPLICA_REQUESTS_PER_S = {1: 1.46, 16: 23.7}
EQUAL_LATENCY_S = 9.0  # at p1200/g128: 1.36 against 0.67 requests/s
EQUAL_THROUGHPUT = 1.2  # requests/s at p2600/g60: 7 against 14 s
