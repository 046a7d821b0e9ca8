"""What every service can be told, by flag, environment variable or default (in that order).

Each option is a flag `--max-num-seqs`, a variable `SPLITFUSE_MAX_NUM_SEQS` and a field below. The
option groups are mixed into one frozen config per service here, and into `splitfuse serve`, so an
option has one name, one default and one sentence of help wherever it appears.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    CliApp,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from common.errors import ConfigError

ENV_PREFIX = "SPLITFUSE_"
CACHE_VARIABLE = "SPLITFUSE_CACHE"  # directory of converted models; read by the public face only
EXIT_CONFIG = 2

MIB = 1024**2
MAX_STREAM_INTERVAL = 1024  # tokens


def _may_be_host(name: str) -> bool:
    """Whether a resolver takes it: no label of a name is empty or longer than 63 bytes."""
    try:
        return bool(name.encode("idna"))
    except UnicodeError:
        return False


def _check_address(value: str) -> str:
    if value.startswith("ipc:///") and len(value) > len("ipc:///"):
        return value
    if value.startswith("tcp://"):
        host, _, port = value.removeprefix("tcp://").rpartition(":")
        if _may_be_host(host) and port.isdecimal() and 0 < int(port) < 65536:
            return value
    raise ValueError(
        f"{value!r} is not an address: write tcp://HOST:PORT or ipc:///DIRECTORY (an absolute path)"
    )


Address = Annotated[str, AfterValidator(_check_address)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Milliseconds = Seconds


def _split_list(value: Any) -> Any:
    return [item for item in value.split(",") if item] if isinstance(value, str) else value


StringList = Annotated[list[str], NoDecode, BeforeValidator(_split_list)]


class CommonOptions(BaseModel):
    """Common to all services, and of one value in all services of one machine."""

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe log lines to print"
    )
    log_format: Literal["console", "json"] = Field("console", description="how log lines look")
    heartbeat_interval_s: Seconds = Field(1.0, description="time between heartbeats to each peer")
    heartbeat_limit_s: Seconds = Field(5.0, description="a peer silent for longer is lost")
    audit_period_s: Seconds = Field(
        10.0, description="time between lists of live requests; no orphan outlives two of them"
    )
    shutdown_timeout_s: float = Field(
        30.0, ge=0, description="on SIGTERM, wait so long for running requests"
    )

    @model_validator(mode="after")
    def _limit_exceeds_interval(self) -> Self:
        if self.heartbeat_limit_s < 2 * self.heartbeat_interval_s:
            raise ValueError(
                f"heartbeat-limit-s ({self.heartbeat_limit_s}) must be at least twice "
                f"heartbeat-interval-s ({self.heartbeat_interval_s})"
            )
        return self


class ServiceOptions(CommonOptions):
    """Common to all services, but each service has its own value."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="stable name of this instance; default: made from host and process id",
    )
    probe_host: str = Field("127.0.0.1", description="where /health and /metrics of a service bind")
    probe_port: int = Field(0, ge=0, le=65535, description="their port; 0 = none")
    mesh_keys: Path | None = Field(
        None, description="directory with CURVE keys made by `splitfuse keys`; needed for tcp"
    )
    allow_plaintext_tcp: bool = Field(
        False, description="let tcp links run unencrypted beyond loopback"
    )


class GatewayOptions(BaseModel):
    host: str = Field("127.0.0.1", description="address of the HTTP server")
    port: int = Field(8000, ge=0, le=65535, description="port of the HTTP server; 0 = any free")
    uds: Path | None = Field(None, description="serve HTTP on this unix socket instead of a port")
    api_key: SecretStr | None = Field(
        None,
        min_length=1,
        description="clients must send it as a bearer token to /v1; better given by variable",
    )
    allowed_origins: StringList = Field(
        default_factory=list, description="origins that browsers may call from (CORS)"
    )
    max_num_queued_reqs: int = Field(
        1024, ge=1, description="sequences in the mesh at once from one gateway; more get a 503"
    )
    max_body_bytes: ByteSize = Field(
        ByteSize(16 * MIB),
        gt=0,
        le=24 * MIB,  # a list of token ids doubles in size and must fit codec.MAX_MESSAGE_BYTES
        description="largest HTTP request body; larger ones get a 413",
    )
    request_timeout_s: Seconds | None = Field(
        None, description="a request that takes longer ends with a timeout error"
    )
    stream_interval: int = Field(
        1,
        ge=1,
        le=MAX_STREAM_INTERVAL,
        description="tokens of a stream that are sent together, behind the first; with more, "
        "services take less of the processor; requests with stop strings get each token",
    )


class ModelOptions(BaseModel):
    """Shared by the services that read the model directory."""

    max_model_len: int | None = Field(
        None, ge=1, description="tokens of prompt + output; default: what the model was made for"
    )


class TokenizerOptions(BaseModel):
    served_model_name: str | None = Field(
        None, description="name in the API; default: the model directory's name"
    )
    chat_template: Path | None = Field(
        None, description="jinja file that replaces the model's own chat template"
    )
    generation_config: Literal["auto", "none"] = Field(
        "auto", description="auto: sampling defaults from the model's generation_config.json"
    )


class SchedulingOptions(BaseModel):
    """What decides which tokens enter a pass, and when."""

    scheduling_policy: Literal["splitfuse", "prefill-first", "orca"] = Field(
        "splitfuse",
        description="splitfuse: passes of one size, prompts are cut; for comparison: "
        "prefill-first: whole prompts stop generation, orca: whole prompts join it",
    )
    max_num_batched_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens per forward pass; default: what the worker's measured throughput "
        "asks for (128 on CPU and 2048 on a GPU until it is measured); with target-tbt-ms, the "
        "smaller of the two; policies that do not cut prompts take at least the longest sequence",
    )
    target_tbt_ms: Milliseconds | None = Field(
        None,
        description="time between tokens of a stream that 99 of 100 are to keep: bounds each pass",
    )
    target_ttft_ms: Milliseconds | None = Field(
        None,
        description="time to first token by which prompts are ordered; default: the prompt's "
        "tokens / 512 s; gives way where target-tbt-ms cannot be kept beside it",
    )
    max_num_seqs: int = Field(256, ge=1, description="sequences that run at once on one worker")
    partition: Literal["greedy", "balanced"] | None = Field(
        None,
        description="how splitfuse cuts prompts: greedy fills each pass, balanced (default) makes "
        "passes even",
    )
    enable_prefix_caching: bool = Field(True, description="reuse KV blocks of equal prefixes")
    max_queued_tokens: int | None = Field(
        None, ge=1, description="uncomputed prompt tokens waiting at once; more get a 503"
    )

    @model_validator(mode="after")
    def _only_splitfuse_cuts_prompts(self) -> Self:
        if self.scheduling_policy == "splitfuse":
            return self
        for name in ("partition", "target_tbt_ms"):
            value = getattr(self, name)
            if value is not None:
                raise ValueError(
                    f"{name.replace('_', '-')} ({value}) is about how prompts are cut, and "
                    f"scheduling-policy {self.scheduling_policy} does not cut them"
                )
        return self


class RecordOptions(BaseModel):
    """What is kept of the scheduler's decisions."""

    record_seconds: float = Field(
        300.0,
        ge=0,
        allow_inf_nan=False,
        description="keep a record of all decisions for so long, to be replayed; 0 = none",
    )
    record_bytes: ByteSize = Field(
        ByteSize(64 * MIB), ge=0, description="memory for that record at most; 0 = none"
    )
    record_dir: Path | None = Field(
        None,
        description="where the record is written on a crash or on SIGUSR1, with the token ids of "
        "prompts and outputs; the last 8 are kept; default: ~/.local/state/splitfuse/records",
    )


class SchedulerOptions(SchedulingOptions, RecordOptions):
    """The scheduler's own."""


class WorkerOptions(BaseModel):
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="of weights, activations and KV; auto: the fastest this device is exact in",
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="where to compute")
    backend: Literal["auto", "cpu", "triton", "reference"] = Field(
        "auto", description="implementation of the ops; auto: cpu on a CPU, reference on a GPU"
    )
    block_size: int = Field(16, ge=1, le=1024, description="tokens per KV block")
    kv_cache_memory: ByteSize | None = Field(
        None, description="bytes for the KV cache, e.g. 2GiB; default: from free memory"
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="share of a GPU's memory for weights and KV together"
    )
    cpu_threads: int | None = Field(
        None, ge=1, description="threads that compute; default: all cores but those services need"
    )
    cpu_isa: Literal["auto", "avx512_bf16", "avx512", "avx2", "generic"] = Field(
        "auto", description="instructions that the cpu backend uses; auto: the best of this CPU"
    )
    cpu_library_dir: Path | None = Field(
        None, description="where `python -m kernels.cpu.build` put the cpu backend; else compiled"
    )
    calibrate: bool = Field(
        True,
        description="measure passes for 2 s at the first start, and keep the result in the cache: "
        "schedulers then know from the beginning what a pass takes",
    )


class Settings(BaseSettings):
    """How a config reads flags and variables."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_enforce_required=False,
        cli_exit_on_error=False,
        frozen=True,
        extra="forbid",
        validate_default=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: Any,
        **__: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Behind flags and arguments only variables; an empty one is unset, as compose has them."""
        return (init_settings, EnvSettingsSource(settings_cls, env_ignore_empty=True))


class GatewayConfig(ServiceOptions, GatewayOptions, Settings):
    """The gateway: HTTP and SSE on one side, tokenizers on the other."""

    model_config = SettingsConfigDict(cli_prog_name="splitfuse gateway")

    tokenizer_address: Address = Field("tcp://tokenizer:7101", description="where tokenizers are")


class TokenizerConfig(ServiceOptions, TokenizerOptions, ModelOptions, Settings):
    """The tokenizer: chat templates, text to ids and back."""

    model_config = SettingsConfigDict(cli_prog_name="splitfuse tokenizer")

    model: Path = Field(description="model directory in Hugging Face layout")
    bind: Address = Field("tcp://0.0.0.0:7101", description="where gateways find this tokenizer")
    scheduler_address: Address = Field("tcp://scheduler:7102", description="where schedulers are")


class SchedulerConfig(ServiceOptions, SchedulerOptions, Settings):
    """The scheduler: composes every forward pass."""

    model_config = SettingsConfigDict(cli_prog_name="splitfuse scheduler")

    bind: Address = Field(
        "tcp://0.0.0.0:7102", description="where tokenizers and workers find this scheduler"
    )


class WorkerConfig(ServiceOptions, WorkerOptions, ModelOptions, Settings):
    """The worker: runs forward passes."""

    model_config = SettingsConfigDict(cli_prog_name="splitfuse worker")

    model: Path = Field(description="model directory in Hugging Face layout")
    scheduler_address: Address = Field("tcp://scheduler:7102", description="where schedulers are")


Config = TypeVar("Config", bound=BaseSettings)


def load_config(config_class: type[Config], argv: Sequence[str] | None = None) -> Config:
    """Read a config from `argv` (default: the command line) and the environment.

    Raises:
        ConfigError: an option is unknown, missing or has an unusable value; names all of them.
    """
    _refuse_unknown_variables(config_class)
    try:
        return CliApp.run(config_class, cli_args=list(sys.argv[1:] if argv is None else argv))
    except ValidationError as error:
        lines = [f"{_flag(e['loc'])}: {e['msg']}" for e in error.errors()]
        raise ConfigError("; ".join(lines)) from None
    except SettingsError as error:
        raise ConfigError(str(error)) from None


def _flag(location: tuple[int | str, ...]) -> str:
    return (
        "--" + ".".join(str(part) for part in location).replace("_", "-") if location else "flags"
    )


def _refuse_unknown_variables(config_class: type[BaseSettings]) -> None:
    """A misspelt SPLITFUSE_* variable must not be ignored silently."""
    known = {
        (ENV_PREFIX + field).upper()
        for cls in (config_class, GatewayConfig, TokenizerConfig, SchedulerConfig, WorkerConfig)
        for field in cls.model_fields
    } | {CACHE_VARIABLE}
    unknown = sorted(v for v in os.environ if v.startswith(ENV_PREFIX) and v.upper() not in known)
    if unknown:
        raise ConfigError(f"unknown environment variables: {', '.join(unknown)}")


def config_or_exit(config_class: type[Config], argv: Sequence[str] | None = None) -> Config:
    """`load_config` for a `__main__`: prints what is wrong and exits with 2."""
    try:
        return load_config(config_class, argv)
    except ConfigError as error:
        print(f"{config_class.model_config.get('cli_prog_name')}: {error}", file=sys.stderr)
        raise SystemExit(EXIT_CONFIG) from None
