"""How long prompts and outputs of a load are."""

from dataclasses import dataclass
from typing import Literal

from common.workload.draw import Draw
from common.workload.timeline import RequestShape

PAPER_SPREAD = 0.3  # DeepSpeed-FastGen's benchmark: standard deviation / mean, of both lengths
PAPER_MAX_PROMPT_TOKENS = 4000  # its cap for models of the Llama and Mixtral families

Distribution = Literal["fixed", "normal", "uniform"]


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of request shapes; prompt and output are drawn independently.

    Raises:
        ValueError: a mean is not positive or beyond its cap, or the spread is out of range.
    """

    mean_prompt_tokens: int
    mean_output_tokens: int
    distribution: Distribution = "normal"
    #: normal: standard deviation / mean; uniform: lengths lie in mean * (1 ± spread)
    spread: float = PAPER_SPREAD
    max_prompt_tokens: int = PAPER_MAX_PROMPT_TOKENS  #: longer draws are cut to it
    max_output_tokens: int = PAPER_MAX_PROMPT_TOKENS  #: likewise

    def __post_init__(self) -> None:
        for name, mean, most in (
            ("prompt", self.mean_prompt_tokens, self.max_prompt_tokens),
            ("output", self.mean_output_tokens, self.max_output_tokens),
        ):
            if not 1 <= mean <= most:
                raise ValueError(f"mean {name} length {mean} must be in 1..{most} tokens")
        if not 0 <= self.spread <= 1:
            raise ValueError(f"spread of lengths {self.spread} must be in 0..1")

    def draw(self, draw: Draw) -> RequestShape:
        """The shape of one request; both lengths are at least 1."""
        prompt = self._length(draw, self.mean_prompt_tokens)
        output = self._length(draw, self.mean_output_tokens)
        return RequestShape(
            num_prompt_tokens=min(max(prompt, 1), self.max_prompt_tokens),
            num_output_tokens=min(max(output, 1), self.max_output_tokens),
        )

    def _length(self, draw: Draw, mean: int) -> int:
        match self.distribution:
            case "fixed":
                return mean
            case "normal":
                return round(draw.normalvariate(mean, self.spread * mean))
            case "uniform":
                return draw.randint(
                    round(mean * (1 - self.spread)), round(mean * (1 + self.spread))
                )
