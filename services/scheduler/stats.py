"""What the core counts, for the shell to export."""

from dataclasses import dataclass


@dataclass(slots=True)
class SchedulerStats:
    """Counters since start, `num_x` of now where marked."""

    num_running: int = 0  #: now: requests that hold KV
    num_waiting: int = 0  #: now: all others
    num_queued_tokens: int = 0  #: now: tokens of waiting requests
    kv_usage: float = 0.0  #: now: held blocks over all blocks of all workers, in [0, 1]
    num_workers: int = 0  #: now
    token_budget: int = 0  #: now: tokens per pass without targets, the least of all workers
    #: now: how many times the predicted time 99 of 100 passes take at most, on the worst worker
    slow_ratio: float = 0.0
    #: now: mean of |measured / predicted - 1| of the last steps' times, on the worst worker
    step_time_error: float = 0.0
    num_steps: int = 0  #: sent
    num_prompt_tokens: int = 0  #: in steps sent, those of decodes left out
    num_output_tokens: int = 0  #: accepted from results
    #: steps sent while prompt tokens that were wanted had to stay behind
    num_backlog_steps: int = 0
    num_full_backlog_steps: int = 0  #: of those, steps that had room for no more tokens
    #: steps sent although they were predicted to exceed a target for the time between tokens
    num_tbt_gave_way_steps: int = 0
    #: steps in which no prompt started, for the sake of the time between tokens
    num_ttft_gave_way_steps: int = 0
    num_late_steps: int = 0  #: whose tokens came later than a target for the time between them
    num_late_first_tokens: int = 0  #: that came later than `target_ttft_ms`
    num_preemptions: int = 0
    num_cache_query_tokens: int = 0  #: of requests at their first start
    num_cache_hit_tokens: int = 0
    num_stopped: int = 0  #: requests ended by a stop token, or by a stop string upstream
    num_length: int = 0  #: requests ended by their length
    num_cancelled: int = 0
    num_failed: int = 0
    num_refused_steps: int = 0  #: that workers could not resolve
    num_lost_workers: int = 0
    num_ignored_results: int = 0  #: of steps that were not in flight
