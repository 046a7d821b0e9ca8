"""What each verb of the command line can be told; see `common.config` for how it is read.

`serve` composes the option groups of the four services, so a flag of a service is a flag of `serve`
with the same name, default and help.
"""

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from common.config import (
    CommonOptions,
    GatewayOptions,
    ModelOptions,
    SchedulerOptions,
    Settings,
    TokenizerOptions,
    WorkerOptions,
)

MODEL_HELP = "model directory, hub id (org/name) or `default`, a small built-in one"


class ServeConfig(
    CommonOptions,
    GatewayOptions,
    TokenizerOptions,
    SchedulerOptions,
    WorkerOptions,
    ModelOptions,
    Settings,
):
    """Serve a model on this machine: all four services, until Ctrl-C."""

    model_config = SettingsConfigDict(cli_prog_name="splitfuse serve")

    model: CliPositionalArg[str | None] = Field(None, description=MODEL_HELP)
    gateways: int = Field(1, ge=1, le=64, description="gateways; the others take following ports")
    tokenizers: int = Field(1, ge=1, le=64, description="tokenizers")
    schedulers: int = Field(1, ge=1, le=64, description="schedulers")
    workers: int = Field(1, ge=1, le=64, description="workers, each with a copy of the model")
    shutdown_timeout_s: float = Field(
        3.0, ge=0, description="on Ctrl-C, wait so long for running requests"
    )
    probe_host: str = Field("127.0.0.1", description="where /health and /metrics of services bind")
    probe_port: int = Field(
        0, ge=0, le=65535, description="first port for those of all but gateways; 0 = none"
    )
    until_stdin_closes: bool = Field(
        False, description="end when standard input does (for programs that start a server)"
    )

    @model_validator(mode="after")
    def _gateways_have_places(self) -> Self:
        if self.uds is not None and self.gateways > 1:
            raise ValueError(f"uds: one socket cannot be shared by {self.gateways} gateways")
        if self.port and self.port + self.gateways - 1 > 65535:
            raise ValueError(f"port {self.port} leaves no room for {self.gateways} gateways")
        return self


class ChatConfig(Settings):
    """Chat in the terminal with any server that speaks OpenAI's protocol."""

    model_config = SettingsConfigDict(cli_prog_name="splitfuse chat")

    url: CliPositionalArg[str] = Field("http://127.0.0.1:8000", description="where the server is")
    model: str | None = Field(None, description="model to ask; default: the first it serves")
    system: str | None = Field(None, description="system message")
    temperature: float | None = Field(None, ge=0, description="default: the server's")
    max_tokens: int | None = Field(None, ge=1, description="of each answer; default: the server's")
    api_key: SecretStr | None = Field(None, description="better given by variable")


class FetchConfig(Settings):
    """Fetch a model without serving it, and print where it is."""

    model_config = SettingsConfigDict(cli_prog_name="splitfuse fetch")

    model: CliPositionalArg[str | None] = Field(None, description=MODEL_HELP)
    to: Path | None = Field(
        None, description="put a copy in this directory; one that holds it already is left alone"
    )


class KeysConfig(Settings):
    """Make the key pair that encrypts tcp links of a mesh."""

    model_config = SettingsConfigDict(cli_prog_name="splitfuse keys")

    directory: CliPositionalArg[Path] = Field(description="where to put it")
    keep: bool = Field(False, description="leave keys that are there already, if they are valid")


class StopConfig(Settings):
    """End a server that runs on this machine, whoever started it."""

    model_config = SettingsConfigDict(cli_prog_name="splitfuse stop")

    url: CliPositionalArg[str] = Field("http://127.0.0.1:8000", description="where it serves")
