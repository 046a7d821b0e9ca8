"""When the tokens of one request came, as its client saw it."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RequestShape:
    """What a request asks for."""

    num_prompt_tokens: int
    num_output_tokens: int
    tenant: str = ""
    priority: int = 0


@dataclass(slots=True)
class Timeline:
    """All times in seconds on one clock, real or virtual."""

    shape: RequestShape  #: what was asked for; output may be shorter
    sent_at: float
    #: when each piece of output came, ascending; a piece is nearly always one token
    token_at: list[float] = field(default_factory=list)
    num_output_tokens: int = 0
    failure: str | None = None  #: why it has no end; None for a request that finished

    @property
    def ttft_s(self) -> float:
        """Time to first token; the request has one at least."""
        return self.token_at[0] - self.sent_at

    @property
    def latency_s(self) -> float:
        """End to end; the request has one token at least."""
        return self.token_at[-1] - self.sent_at

    @property
    def gaps_s(self) -> list[float]:
        """Times between tokens, the first token's wait left out."""
        times = self.token_at
        return [times[i + 1] - times[i] for i in range(len(times) - 1)]
