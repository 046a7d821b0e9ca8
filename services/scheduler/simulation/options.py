"""What `splitfuse simulate` and `splitfuse plan` can be told; see `common.config` for how."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from common.config import SchedulingOptions, Settings
from common.workload.options import LengthOptions, Positive, Rates, SlaOptions, split_list
from services.scheduler.simulation.roofline import Assumptions
from services.scheduler.simulation.scenario import Placement

DEFAULT_CLIENTS = (1, 2, 4, 8, 16, 32)
DEFAULT_KV_CACHE_TOKENS = 65_536
_ASSUMED = Assumptions()

# What a name in --policies changes of the scheduler's options.
POLICIES: dict[str, dict[str, str | None]] = {
    "splitfuse": {"scheduling_policy": "splitfuse"},
    "splitfuse-balanced": {"scheduling_policy": "splitfuse", "partition": "balanced"},
    "splitfuse-greedy": {"scheduling_policy": "splitfuse", "partition": "greedy"},
    "prefill-first": {"scheduling_policy": "prefill-first"},
    "orca": {"scheduling_policy": "orca"},
}


def _parse_point(value: Any) -> Any:
    """TOKENS:MS as a pair."""
    return tuple(value.split(":")) if isinstance(value, str) else value


def _known_policies(names: list[str]) -> list[str]:
    unknown = [name for name in names if name not in POLICIES]
    if unknown:
        raise ValueError(f"{', '.join(unknown)} is none of {', '.join(POLICIES)}")
    return names


NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Counts = Annotated[list[Count], NoDecode, BeforeValidator(split_list)]
PositiveList = Annotated[list[Positive], NoDecode, BeforeValidator(split_list)]
Policies = Annotated[
    list[str], NoDecode, BeforeValidator(split_list), AfterValidator(_known_policies)
]
Placements = Annotated[list[Placement], NoDecode, BeforeValidator(split_list)]
CurvePoint = Annotated[tuple[int, float], BeforeValidator(_parse_point)]
Curve = Annotated[list[CurvePoint], NoDecode, BeforeValidator(split_list), Field(min_length=2)]


class GpuOptions(BaseModel):
    """A device from its datasheet, and what the datasheet does not say."""

    gpu: str | None = Field(
        None, description="predict passes on this GPU: A100-80G, H100, H200, L40S, ..."
    )
    model: Path | None = Field(None, description="model directory with a config.json; with gpu")
    tensor_parallel_size: int = Field(1, ge=1, le=64, description="GPUs that share each model copy")
    memory_efficiency: Share = Field(
        _ASSUMED.memory_efficiency, description="share of a GPU's memory bandwidth that is reached"
    )
    flop_efficiency: Share = Field(
        _ASSUMED.flop_efficiency, description="share of a GPU's matrix rate that is reached"
    )
    link_efficiency: Share = Field(
        _ASSUMED.link_efficiency, description="share of the bandwidth between GPUs that is reached"
    )
    all_reduce_us: NotNegative = Field(
        _ASSUMED.all_reduce_us, description="time of a small all-reduce, two of which a layer has"
    )
    gpu_memory_utilization: Share = Field(
        _ASSUMED.memory_utilization, description="share of a GPU's memory for weights and KV"
    )

    @property
    def assumptions(self) -> Assumptions:
        """As the roofline takes them."""
        return Assumptions(
            memory_efficiency=self.memory_efficiency,
            flop_efficiency=self.flop_efficiency,
            link_efficiency=self.link_efficiency,
            all_reduce_us=self.all_reduce_us,
            memory_utilization=self.gpu_memory_utilization,
        )


class DeviceOptions(GpuOptions):
    """What passes take, and how much memory there is: one of three sources."""

    calibration: Path | None = Field(
        None, description="predict passes from this file of `splitfuse bench calibrate`"
    )
    curve: Curve | None = Field(
        None, description="predict passes from TOKENS:MS,TOKENS:MS,..., linear between the points"
    )
    context_token_us: NotNegative = Field(
        0.0, description="with curve: microseconds for the KV of each token that a pass reads"
    )
    noise: NotNegative = Field(
        0.0, description="standard deviation of the logarithm of measured over predicted pass time"
    )
    interruptions_per_s: NotNegative = Field(
        0.0, description="of computing, by whatever else the machine does"
    )
    interruption_ms: Positive = Field(10.0, description="how long they last, mean")
    kv_cache_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens of KV per worker; default: what a GPU's memory leaves, or "
        f"{DEFAULT_KV_CACHE_TOKENS}",
    )
    block_size: int = Field(16, ge=1, le=1024, description="tokens per KV block")
    max_model_len: int | None = Field(
        None, ge=1, description="tokens of prompt + output; default: the model's, or 8192"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("calibration", "curve", "gpu") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "say what passes take by exactly one of calibration, curve and gpu, not by "
                f"{' and '.join(given) or 'none'}"
            )
        if (self.gpu is None) != (self.model is None):
            raise ValueError("gpu and model go together")
        if self.context_token_us and self.curve is None:
            raise ValueError(f"context-token-us ({self.context_token_us:g}) needs curve")
        if self.tensor_parallel_size > 1 and self.gpu is None:
            raise ValueError(f"tensor-parallel-size ({self.tensor_parallel_size}) needs gpu")
        return self


class HostOptions(BaseModel):
    """What the services around a worker cost, in milliseconds."""

    request_ms: NotNegative = Field(
        0.0, description="from a client's request until the scheduler has it"
    )
    prompt_token_ms: NotNegative = Field(0.0, description="in addition, per token of the prompt")
    link_ms: NotNegative = Field(0.0, description="scheduler to worker, and back")
    pass_ms: NotNegative = Field(0.0, description="between two passes of a worker")
    sampled_token_ms: NotNegative = Field(
        0.0, description="by which a pass is longer for each token that it samples"
    )
    reply_ms: NotNegative = Field(
        0.0, description="from a pass's result at the scheduler until the client has the token"
    )


class SimulationOptions(DeviceOptions, HostOptions, LengthOptions, SlaOptions, SchedulingOptions):
    """Common to both verbs."""

    num_prompts: int | None = Field(
        None, ge=1, description="requests per run; default: 4 * clients + 32, 100, or a trace's"
    )
    seed: int = Field(0, description="of lengths, arrivals and noise")
    rounds: int = Field(1, ge=1, le=100, description="runs of each point, with other seeds")
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="what clients allow: a stop token ends each output; default: lengths are known",
    )
    json_file: Path | None = Field(None, description="write all numbers to this file")
    plots: Path | None = Field(None, description="draw figures into this directory")


class SimulateConfig(SimulationOptions, Settings):
    """Play loads to the scheduler on a virtual clock."""

    model_config = SettingsConfigDict(cli_prog_name="splitfuse simulate")

    clients: Counts | None = Field(
        None,
        min_length=1,
        description="closed loops, e.g. 1,8,32; each client sends its next request when its last "
        f"is answered; default: {','.join(map(str, DEFAULT_CLIENTS))}",
    )
    request_rate: PositiveList | None = Field(
        None, min_length=1, description="open loops of so many requests/s, instead of clients"
    )
    burstiness: Positive | None = Field(
        None, description="shape of the gamma distribution between requests; 1 (default): Poisson"
    )
    policies: Policies | None = Field(
        None,
        min_length=1,
        description=f"to compare, of {', '.join(POLICIES)}; default: scheduling-policy alone",
    )
    workers: Counts = Field([1], min_length=1, description="numbers of workers to compare")
    clients_per_worker: bool = Field(
        False, description="let clients, rates and num-prompts be per worker"
    )
    placements: Placements = Field(
        ["backlog"], min_length=1, description="of requests on workers: backlog, round-robin"
    )

    @model_validator(mode="after")
    def _arrivals_come_from_one_place(self) -> Self:
        if self.clients is not None and self.request_rate is not None:
            raise ValueError("clients and request-rate exclude each other")
        if self.burstiness is not None and self.request_rate is None:
            raise ValueError(f"burstiness ({self.burstiness:g}) needs request-rate")
        return self

    @model_validator(mode="after")
    def _policies_come_from_one_place(self) -> Self:
        given = self.model_fields_set & {"scheduling_policy", "partition"}
        if self.policies is not None and given:
            names = " and ".join(name.replace("_", "-") for name in sorted(given))
            raise ValueError(f"policies say all that {names} would: leave one of them out")
        return self

    @property
    def compared_policies(self) -> list[str]:
        """Names of `POLICIES`."""
        return self.policies or [self.scheduling_policy]


class PlanConfig(SimulationOptions, Settings):
    """Find how many replicas, and which settings, a load needs."""

    model_config = SettingsConfigDict(cli_prog_name="splitfuse plan")

    request_rate: Positive | None = Field(
        None, description="requests/s of the load; default: the trace's arrivals"
    )
    burstiness: Positive = Field(
        1.0, description="shape of the gamma distribution between requests; 1: Poisson"
    )
    sla_tokens_per_s: Rates = Field(
        [4.0], min_length=1, max_length=1, description="pace of generation that is promised"
    )
    slo_share: Share = Field(0.99, description="share of requests that must meet the SLA")
    slo_ttft_ms: Positive | None = Field(
        None, description="P99 of the time to first token to keep, instead of the SLA"
    )
    slo_tbt_ms: Positive | None = Field(
        None, description="P99 of the time between tokens to keep, instead of the SLA"
    )
    max_workers: int = Field(64, ge=1, le=1024, description="replicas to try at most")
    budgets: Counts | None = Field(
        None,
        min_length=1,
        description="tokens per pass to try; default: what the scheduler finds, and powers of two",
    )

    @model_validator(mode="after")
    def _arrivals_come_from_one_place(self) -> Self:
        if (self.request_rate is None) == (self.trace is None):
            raise ValueError("say what arrives by either request-rate or trace")
        return self
