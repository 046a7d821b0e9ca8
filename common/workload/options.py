"""What loads can be told, wherever they are put on something: shared by bench and simulator.

Names are those of vLLM's benchmark where the meaning is the same.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode

from common.workload.lengths import PAPER_MAX_PROMPT_TOKENS, PAPER_SPREAD
from common.workload.measures import PAPER_EMA_SPAN, PAPER_PROMPT_TOKENS_PER_S, Sla

DEFAULT_INPUT_LEN = 1500
DEFAULT_OUTPUT_LEN = 64
OPEN_LOOP_PROMPTS = 100


def split_list(value: Any) -> Any:
    """The items of a list that is given as text with commas."""
    return [item for item in value.split(",") if item] if isinstance(value, str) else value


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rates = Annotated[list[Positive], NoDecode, BeforeValidator(split_list)]


class LengthOptions(BaseModel):
    """The shapes of requests."""

    input_len: int | None = Field(
        None, ge=1, description=f"mean tokens of prompts; default: {DEFAULT_INPUT_LEN}"
    )
    output_len: int | None = Field(
        None, ge=1, description=f"mean tokens of outputs; default: {DEFAULT_OUTPUT_LEN}"
    )
    length_distribution: Literal["normal", "fixed", "uniform"] = Field(
        "normal", description="of both lengths, each drawn for itself"
    )
    length_spread: float | None = Field(
        None,
        ge=0,
        le=1,
        description="normal: standard deviation / mean; uniform: lengths are mean * (1 ± spread); "
        f"default: {PAPER_SPREAD}",
    )
    max_input_len: int = Field(
        PAPER_MAX_PROMPT_TOKENS, ge=1, description="longer prompts are cut to it"
    )
    trace: Path | None = Field(
        None,
        description="JSON lines with prompt_tokens, output_tokens and perhaps arrival_s, tenant, "
        "priority: requests as they are there, instead of drawn ones",
    )

    @model_validator(mode="after")
    def _lengths_come_from_one_place(self) -> Self:
        drawn = ("input_len", "output_len", "length_spread")
        if self.trace is not None and any(getattr(self, name) is not None for name in drawn):
            raise ValueError("trace says all lengths: leave input-len, output-len and spread out")
        if self.length_distribution == "fixed" and self.length_spread is not None:
            raise ValueError(f"length-spread ({self.length_spread}): fixed lengths have none")
        return self


class SlaOptions(BaseModel):
    """What counts as good; the defaults are the FastGen paper's."""

    sla_tokens_per_s: Rates = Field(
        [2.0, 4.0, 6.0], min_length=1, description="paces of generation, one SLA each"
    )
    sla_prompt_tokens_per_s: Positive = Field(
        PAPER_PROMPT_TOKENS_PER_S, description="the first token may take prompt tokens / it seconds"
    )
    sla_ema_span: int = Field(
        PAPER_EMA_SPAN, ge=1, description="tokens over which gaps are averaged exponentially"
    )
    sla_scale: Positive = Field(
        1.0, description="all SLAs allow so many times longer (for a machine of another speed)"
    )

    @property
    def slas(self) -> list[Sla]:
        """In the order of the paces."""
        return [
            Sla(pace, self.sla_prompt_tokens_per_s, self.sla_ema_span).scaled(self.sla_scale)
            for pace in self.sla_tokens_per_s
        ]
