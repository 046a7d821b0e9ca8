"""Pure: which processes make up a mesh on one machine, and how each is told what to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from common.config import (
    ENV_PREFIX,
    CommonOptions,
    GatewayOptions,
    ModelOptions,
    SchedulerOptions,
    TokenizerOptions,
    WorkerOptions,
)
from common.messages import ServiceKind
from splitfuse.app_tree import python_command, python_environment
from splitfuse.cache import CACHE_VARIABLE
from splitfuse.flags import to_flags
from splitfuse.options import ServeConfig

API_KEY_VARIABLE = f"{ENV_PREFIX}API_KEY"

# In the order to start them; each group of options is passed on as it was given.
_GROUPS: dict[ServiceKind, tuple[type[BaseModel], ...]] = {
    "scheduler": (CommonOptions, SchedulerOptions),
    "worker": (CommonOptions, WorkerOptions, ModelOptions),
    "tokenizer": (CommonOptions, TokenizerOptions, ModelOptions),
    "gateway": (CommonOptions, GatewayOptions),
}


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One process. `environ` may hold a secret; `command` never does, everyone can read it."""

    kind: ServiceKind
    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Place:
    """What a mesh has for its own on this machine."""

    directory: Path  # its sockets are below
    model: Path
    model_name: str  # in the API
    gateway_ports: tuple[int, ...]  # one per gateway

    @property
    def tokenizer_sockets(self) -> Path:
        return self.directory / "tokenizer"

    @property
    def scheduler_sockets(self) -> Path:
        return self.directory / "scheduler"


def plan_mesh(
    config: ServeConfig, place: Place, environ: Mapping[str, str], num_cores: int
) -> list[ServiceSpec]:
    """The services of the mesh, in the order to start them.

    Options that were given, by flag or variable, become flags of the services they belong to; our
    variables are taken out of `environ`, so that a service is told each thing once.
    """
    counts: dict[ServiceKind, int] = {
        "scheduler": config.schedulers,
        "worker": config.workers,
        "tokenizer": config.tokenizers,
        "gateway": config.gateways,
    }
    specs: list[ServiceSpec] = []
    for kind, count in counts.items():
        for index in range(count):
            name = f"{kind}-{index}"
            flags: dict[str, Any] = {"name": name, **_given_options(config, kind)}
            if kind == "gateway":
                flags["port"] = place.gateway_ports[index]
            elif config.probe_port:
                flags |= {"probe_host": config.probe_host, "probe_port": config.probe_port}
                flags["probe_port"] += len(specs)
            flags |= _links(kind, place)
            if kind == "worker" and config.workers > 1 and config.cpu_threads is None:
                flags["cpu_threads"] = max(1, num_cores // config.workers)
            command = (*python_command(f"services.{kind}"), *to_flags(flags))
            specs.append(ServiceSpec(kind, name, command, _environment(environ, config, kind)))
    return specs


def _given_options(config: ServeConfig, kind: ServiceKind) -> dict[str, Any]:
    """The options of this kind that were given; `serve` has its own default for one."""
    names = {name for group in _GROUPS[kind] for name in group.model_fields} - {"api_key"}
    given = names & (config.model_fields_set | {"shutdown_timeout_s"})
    return {name: getattr(config, name) for name in sorted(given)}


def _links(kind: ServiceKind, place: Place) -> dict[str, Any]:
    tokenizers = f"ipc://{place.tokenizer_sockets}"
    schedulers = f"ipc://{place.scheduler_sockets}"
    match kind:
        case "gateway":
            return {"tokenizer_address": tokenizers}
        case "tokenizer":
            return {
                "model": place.model,
                "served_model_name": place.model_name,
                "bind": tokenizers,
                "scheduler_address": schedulers,
            }
        case "scheduler":
            return {"bind": schedulers}
        case "worker":
            return {"model": place.model, "scheduler_address": schedulers}


def _environment(
    environ: Mapping[str, str], config: ServeConfig, kind: ServiceKind
) -> dict[str, str]:
    kept = {
        name: value
        for name, value in environ.items()
        if not name.upper().startswith(ENV_PREFIX) or name == CACHE_VARIABLE
    }
    if kind == "gateway" and config.api_key is not None:
        kept[API_KEY_VARIABLE] = config.api_key.get_secret_value()
    return {**python_environment(kept), "PYTHONUNBUFFERED": "1"}
