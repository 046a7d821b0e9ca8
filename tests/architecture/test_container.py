"""The container files are valid, for every service and with and without a model of one's own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic_settings import BaseSettings

from common.config import (
    GatewayConfig,
    SchedulerConfig,
    TokenizerConfig,
    WorkerConfig,
    load_config,
)
from splitfuse.options import FetchConfig, KeysConfig

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def compose_config(**environment: str) -> dict[str, Any]:
    result = subprocess.run(
        [BIN / "docker-compose", "config", "--format", "json"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    config: dict[str, Any] = json.loads(result.stdout)
    return config


def test_compose_has_the_four_services_each_with_a_healthcheck_and_a_model_volume() -> None:
    services = compose_config()["services"]

    assert set(services) == {"keys", "model", "gateway", "tokenizer", "scheduler", "worker"}
    for name in ("gateway", "tokenizer", "scheduler", "worker"):
        assert "urlopen" in " ".join(services[name]["healthcheck"]["test"])
        assert "models" in {volume["source"] for volume in services[name]["volumes"]}


def test_only_the_gateway_is_reachable_and_only_from_this_machine() -> None:
    services = compose_config()["services"]

    assert [name for name, service in services.items() if service.get("ports")] == ["gateway"]
    assert services["gateway"]["ports"][0]["host_ip"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("name", "verb", "config_class"),
    [
        ("keys", "keys", KeysConfig),
        ("model", "fetch", FetchConfig),
        ("gateway", "gateway", GatewayConfig),
        ("tokenizer", "tokenizer", TokenizerConfig),
        ("scheduler", "scheduler", SchedulerConfig),
        ("worker", "worker", WorkerConfig),
    ],
)
def test_what_each_container_is_told_is_understood(
    name: str, verb: str, config_class: type[BaseSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = compose_config()["services"][name]
    for variable, value in service["environment"].items():
        monkeypatch.setenv(variable, value)

    assert service["command"][0] == verb
    load_config(config_class, service["command"][1:])


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "SmolLM2-135M-Instruct"),
        ({"MODEL": "org/name"}, "org/name"),
        ({"MODEL": "org/name", "SERVED_MODEL_NAME": "mine"}, "mine"),
    ],
)
def test_a_model_of_ones_own_is_served_under_its_name(given: dict[str, str], name: str) -> None:
    command = compose_config(**given)["services"]["tokenizer"]["command"]

    assert load_config(TokenizerConfig, command[1:]).served_model_name == name


def test_without_a_key_of_its_user_the_gateway_asks_for_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway = compose_config()["services"]["gateway"]
    for variable, value in gateway["environment"].items():
        monkeypatch.setenv(variable, value)

    assert load_config(GatewayConfig, gateway["command"][1:]).api_key is None


def test_workers_find_the_cpu_library_where_the_image_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    (built,) = re.findall(r"kernels\.cpu\.build --all --into (\S+)", dockerfile)
    (variable,) = re.findall(r"SPLITFUSE_CPU_LIBRARY_DIR=(\S+)", dockerfile)
    monkeypatch.setenv("SPLITFUSE_CPU_LIBRARY_DIR", variable)

    config = load_config(WorkerConfig, ["--model", "/models/current"])

    assert f"COPY --from=cpu-library {built} {config.cpu_library_dir}\n" in dockerfile


def test_dockerfile_is_lint_free() -> None:
    result = subprocess.run(
        [BIN / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stdout
