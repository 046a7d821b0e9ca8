"""What each verb of `splitfuse bench` can be told; see `common.config` for how it is read.

Names are those of vLLM's benchmark where the meaning is the same.
"""

import re
import shlex
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import CliPositionalArg, NoDecode, SettingsConfigDict

from common.config import Seconds, Settings
from common.workload.options import (
    OPEN_LOOP_PROMPTS,
    LengthOptions,
    Positive,
    SlaOptions,
    split_list,
)
from splitfuse.options import MODEL_HELP

PAPER_CLIENTS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32)

# What a name in --policies adds to the flags of `splitfuse serve`.
POLICIES = {
    "splitfuse": ("--scheduling-policy=splitfuse",),
    "splitfuse-balanced": ("--scheduling-policy=splitfuse", "--partition=balanced"),
    "splitfuse-greedy": ("--scheduling-policy=splitfuse", "--partition=greedy"),
    "prefill-first": ("--scheduling-policy=prefill-first",),
    "orca": ("--scheduling-policy=orca",),
}
_VARIANT = re.compile(r"([A-Za-z0-9._-]{1,40})=(.*)", re.DOTALL)


def _ascending(values: list[int]) -> list[int]:
    if not values or values != sorted(set(values)):
        raise ValueError(f"{values} must ascend")
    return values


def _check_flags(value: str) -> str:
    shlex.split(value)  # raises ValueError: a quotation without an end
    return value


Flags = Annotated[str, AfterValidator(_check_flags)]
Count = Annotated[int, Field(ge=1)]
Counts = Annotated[list[Count], NoDecode, BeforeValidator(split_list), AfterValidator(_ascending)]
Policies = Annotated[list[str], NoDecode, BeforeValidator(split_list)]


class RequestOptions(BaseModel):
    """How requests are made and sent."""

    num_prompts: int | None = Field(
        None,
        ge=1,
        description=f"requests; default: 4 * clients + 32, {OPEN_LOOP_PROMPTS} at a rate, or all "
        "of a trace",
    )
    num_warmups: int = Field(2, ge=0, description="requests before those that count")
    seed: int = Field(
        0, description="of lengths and arrivals; prompts are new each time, so no cache knows them"
    )
    temperature: float = Field(0.0, ge=0, description="of sampling; 0: the most probable token")
    request_timeout_s: Seconds = Field(900.0, description="a request that takes longer has failed")
    api_key: SecretStr | None = Field(None, description="better given by variable")


class OutputOptions(BaseModel):
    """What is left behind."""

    output: Path | None = Field(
        None, description="result file, plots beside it; default: a new one in the cache directory"
    )
    plots: bool = Field(True, description="draw figures; needs matplotlib")


class LoadOptions(LengthOptions, RequestOptions, SlaOptions, OutputOptions):
    """Common to the verbs that put loads on servers."""


class RunningServerOptions(BaseModel):
    """A server that somebody else has started."""

    served_model_name: str | None = Field(
        None, description="model to ask for; default: the first that the server lists"
    )
    tokenizer: Path | None = Field(
        None,
        description="tokenizer.json, or the directory that holds it: for prompts as text where "
        "the server takes no token ids",
    )


class ServerOptions(BaseModel):
    """Servers of our own that are started to be measured."""

    serve_flags: Flags = Field(
        "", description="more flags of `splitfuse serve` for all of them, quoted"
    )

    @property
    def flags(self) -> list[str]:
        """Split as a shell does."""
        return shlex.split(self.serve_flags)


class ServeBenchConfig(LoadOptions, RunningServerOptions, Settings):
    """Put one load on any server that speaks OpenAI's protocol."""

    model_config = SettingsConfigDict(cli_prog_name="splitfuse bench serve")

    url: CliPositionalArg[str] = Field("http://127.0.0.1:8000", description="where the server is")
    clients: int | None = Field(
        None, ge=1, description="each sends its next request when its last is answered; default: 1"
    )
    request_rate: Positive | None = Field(
        None, description="requests per second, whatever becomes of them; instead of clients"
    )
    burstiness: Positive | None = Field(
        None,
        description="shape of the gamma distribution between requests at a rate; 1, the default, "
        "is Poisson, less is burstier",
    )

    @model_validator(mode="after")
    def _arrivals_come_from_one_place(self) -> Self:
        if self.clients is not None and self.request_rate is not None:
            raise ValueError("clients and request-rate exclude each other")
        if self.burstiness is not None and self.request_rate is None:
            raise ValueError(f"burstiness ({self.burstiness}) needs request-rate")
        return self


class SweepConfig(LoadOptions, ServerOptions, RunningServerOptions, Settings):
    """Compare scheduling policies over numbers of clients, as the FastGen paper does."""

    model_config = SettingsConfigDict(cli_prog_name="splitfuse bench sweep")

    model: CliPositionalArg[str | None] = Field(None, description=MODEL_HELP)
    url: str | None = Field(None, description="measure the server that runs here, start none")
    policies: Policies = Field(
        ["splitfuse", "prefill-first"],
        description=f"servers to start, of {', '.join(POLICIES)}; may be empty",
    )
    variants: list[str] = Field(
        [],
        description="more servers to start: LABEL=FLAGS of `splitfuse serve`; may be repeated",
    )
    clients: Counts = Field(list(PAPER_CLIENTS), description="closed loops to put on each")
    rounds: int = Field(1, ge=1, description="times that all is measured; servers start anew")

    @model_validator(mode="after")
    def _there_is_something_to_measure(self) -> Self:
        unknown = [name for name in self.policies if name not in POLICIES]
        if unknown:
            raise ValueError(f"policies: {', '.join(unknown)} is none of {', '.join(POLICIES)}")
        if self.url is not None and (self.model is not None or self.serve_flags or self.variants):
            raise ValueError("url: a server that runs already takes no model, flags or variants")
        for name in RunningServerOptions.model_fields:
            if self.url is None and getattr(self, name) is not None:
                flag = name.replace("_", "-")
                raise ValueError(f"{flag} is for a server that runs already (url)")
        if self.url is None and not self.servers:
            raise ValueError("neither policies nor variants: nothing to measure")
        return self

    @property
    def servers(self) -> dict[str, list[str]]:
        """Flags of each server to start, by label."""
        found = {name: [*self.flags, *POLICIES[name]] for name in self.policies}
        for variant in self.variants:
            match = _VARIANT.fullmatch(variant)
            if match is None:
                raise ValueError(f"variants: {variant!r} is not LABEL=FLAGS")
            found[match[1]] = [*self.flags, *shlex.split(match[2])]
        return found


class ReplicasConfig(LoadOptions, ServerOptions, Settings):
    """Throughput over numbers of workers, each with so many clients."""

    model_config = SettingsConfigDict(cli_prog_name="splitfuse bench replicas")

    model: CliPositionalArg[str | None] = Field(None, description=MODEL_HELP)
    workers: Counts = Field([1, 2], description="numbers of workers; the cores are shared out")
    clients_per_worker: int = Field(16, ge=1, description="closed loop")
    rounds: int = Field(1, ge=1, description="times that all is measured; servers start anew")


class CalibrateConfig(OutputOptions, Settings):
    """Time and throughput of passes over their tokens, on this machine."""

    model_config = SettingsConfigDict(cli_prog_name="splitfuse bench calibrate")

    model: CliPositionalArg[str | None] = Field(None, description=MODEL_HELP)
    worker_flags: Flags = Field("", description="more flags of `splitfuse worker`, quoted")


class ReportConfig(SlaOptions, Settings):
    """Show a result file again, under other SLAs if they are given, and draw its figures."""

    model_config = SettingsConfigDict(cli_prog_name="splitfuse bench report")

    file: CliPositionalArg[Path] = Field(description="result file of serve, sweep or replicas")
    plots: bool = Field(True, description="draw figures beside the file; needs matplotlib")
