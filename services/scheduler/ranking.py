"""In which order requests are served: what `FairOrder` needs to know of them.

A request is promised its first token within `--target-ttft-ms`, or else within what the SLA of
the FastGen paper gives to its prompt: a second for each 512 tokens.
"""

from math import inf

from services.scheduler.fair_order import FairOrder
from services.scheduler.output_lengths import OutputLengths
from services.scheduler.replicas import MS_PER_S, Replicas
from services.scheduler.request import Request
from services.scheduler.work import num_attended, outputs_ms, prompts_ms

SLA_TOKENS_PER_S = 512  # of a prompt; also stands for a worker's speed until one is known


class Ranking:
    """Gives requests their place in `Request.order`, and settles what they cost in the end.

    Args:
        replicas: the workers that they may run on.
        lengths: of outputs.
        target_ttft_ms: time to first token; None: by the length of the prompt.
    """

    def __init__(
        self, replicas: Replicas, lengths: OutputLengths, target_ttft_ms: float | None
    ) -> None:
        self._replicas = replicas
        self._lengths = lengths
        self._target_s = None if target_ttft_ms is None else target_ttft_ms / MS_PER_S
        self._order = FairOrder()

    def arrived(self, request: Request) -> None:
        """Rank a request; once."""
        num_prompt, num_output = request.num_prompt_tokens, request.num_output_tokens
        expected = max(self._lengths.mean, num_output + 1)
        prompt_s, output_s = self._costs_s(
            num_prompt, 0, min(expected, request.sampling.max_tokens or expected)
        )
        promised_s = num_prompt / SLA_TOKENS_PER_S if self._target_s is None else self._target_s
        request.predicted_s = prompt_s + output_s
        request.start_tag, request.rank = self._order.arrive(
            request.tenant, request.predicted_s, promised_s - prompt_s
        )
        request.first_token_by = inf if self._target_s is None else request.arrived_at + promised_s

    def started(self, request: Request) -> None:
        """The request runs for the first time."""
        self._order.start(request.start_tag, request.predicted_s)

    def ended(self, request: Request) -> None:
        """The request is over: its tenant pays for what was computed, not for what was expected."""
        cost_s = 0.0
        if request.num_cached_tokens is not None:
            cost_s = sum(
                self._costs_s(
                    request.num_prompt_tokens,
                    request.num_cached_tokens,
                    request.num_output_tokens,
                )
            )
        self._order.end(request.tenant, cost_s - request.predicted_s)

    def _costs_s(
        self, num_prompt_tokens: int, num_cached_tokens: int, num_output_tokens: int
    ) -> tuple[float, float]:
        """Device time of a prompt and of its output, on the first worker that is known."""
        num_tokens = num_prompt_tokens - num_cached_tokens
        replica = next((r for r in self._replicas if r.budget.is_known), None)
        if replica is None:
            return num_tokens / SLA_TOKENS_PER_S, num_output_tokens / SLA_TOKENS_PER_S
        model, tokens_per_pass = replica.budget.model, replica.budget.prompt_tokens
        attended = num_attended(num_cached_tokens, num_tokens)
        prompt_ms = prompts_ms(model, num_tokens, attended, tokens_per_pass)
        output_ms = outputs_ms(model, num_prompt_tokens, num_output_tokens, tokens_per_pass)
        return prompt_ms / MS_PER_S, output_ms / MS_PER_S
