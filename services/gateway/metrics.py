"""What a gateway counts. Latencies are measured here because here is where the client waits."""

from common.metrics import (
    ITL_BUCKETS_S,
    LATENCY_BUCKETS_S,
    TTFT_BUCKETS_S,
    counter,
    gauge,
    histogram,
    length_buckets,
)

_LARGEST_LENGTH = 1_000_000

time_to_first_token = histogram(
    "time_to_first_token_seconds", "From the request to its first token", TTFT_BUCKETS_S
)
inter_token_latency = histogram(
    "inter_token_latency_seconds", "Between deltas of one sequence, per token", ITL_BUCKETS_S
)
e2e_request_latency = histogram(
    "e2e_request_latency_seconds", "From the request to its last token", LATENCY_BUCKETS_S
)
request_prompt_tokens = histogram(
    "request_prompt_tokens", "Prompt tokens per sequence", length_buckets(_LARGEST_LENGTH)
)
request_generation_tokens = histogram(
    "request_generation_tokens", "Output tokens per sequence", length_buckets(_LARGEST_LENGTH)
)
prompt_tokens = counter("gateway_prompt_tokens", "Prompt tokens of finished sequences")
generation_tokens = counter("gateway_generation_tokens", "Output tokens delivered")
request_success = counter(
    "request_success", "Sequences that finished, by why", labels=("finished_reason",)
)
request_failures = counter("request_failures", "Sequences that failed, by why", labels=("code",))
requests_cancelled = counter("requests_cancelled", "Sequences whose client left before their end")
request_resends = counter("request_resends", "Requests sent again because a tokenizer was lost")
http_errors = counter("http_errors", "HTTP error answers, by status", labels=("status",))
num_requests = gauge("gateway_num_requests", "Sequences in work for this gateway")
num_streams_open = gauge("num_streams_open", "SSE responses being written")
