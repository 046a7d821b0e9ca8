"""What the services around a worker cost: the time that is not spent in passes."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class HostCosts:
    """Constants in milliseconds; all zero means that only the device takes time.

    Raises:
        ValueError: one is negative.
    """

    #: from a client's request until the scheduler has it: gateway, tokenizer, two links
    request_ms: float = 0.0
    prompt_token_ms: float = 0.0  #: in addition, for each token of the prompt (tokenizing)
    link_ms: float = 0.0  #: scheduler to worker, and back
    #: between two passes of a worker that has its next plan already
    pass_ms: float = 0.0
    #: by which a pass gets longer for each token that it samples: where the services share
    #: the cores of the device they take this much from it
    sampled_token_ms: float = 0.0
    #: from a step's result at the scheduler until the client has the token
    reply_ms: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) >= 0:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}, it must be >= 0")

    def until_scheduler_s(self, num_prompt_tokens: int) -> float:
        """Seconds from the client's send until the request arrives at the scheduler."""
        return (self.request_ms + self.prompt_token_ms * num_prompt_tokens) / 1e3
