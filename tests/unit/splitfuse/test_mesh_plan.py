import re
from pathlib import Path
from typing import Any

import pytest

from common.config import (
    CACHE_VARIABLE,
    GatewayConfig,
    SchedulerConfig,
    TokenizerConfig,
    WorkerConfig,
    load_config,
)
from splitfuse import cache
from splitfuse.mesh_plan import API_KEY_VARIABLE, Place, ServiceSpec, plan_mesh
from splitfuse.options import ServeConfig

CONFIG_OF: dict[str, Any] = {
    "gateway": GatewayConfig,
    "tokenizer": TokenizerConfig,
    "scheduler": SchedulerConfig,
    "worker": WorkerConfig,
}


def plan(*flags: str, environ: dict[str, str] | None = None) -> list[ServiceSpec]:
    config = load_config(ServeConfig, flags)
    place = Place(
        directory=Path("/run/mesh"),
        model=Path("/models/tiny"),
        model_name="org/tiny",
        gateway_ports=tuple(9000 + i for i in range(config.gateways)),
    )
    return plan_mesh(config, place, environ or {}, num_cores=8)


def own_flags(spec: ServiceSpec) -> list[str]:
    """What the service reads: all behind `python -P -m services.x`."""
    return list(spec.command[4:])


def test_one_of_each_is_started_workers_before_gateways() -> None:
    assert [spec.name for spec in plan()] == [
        "scheduler-0",
        "worker-0",
        "tokenizer-0",
        "gateway-0",
    ]


def test_each_service_takes_the_flags_it_is_given() -> None:
    specs = plan(
        *("--gateways", "2", "--tokenizers", "3", "--schedulers", "2", "--workers", "2"),
        *("--max-num-batched-tokens", "77", "--no-enable-prefix-caching", "--dtype", "float32"),
        *("--log-format", "json", "--allowed-origins", "http://a,http://b", "--probe-port", "9100"),
        *("--kv-cache-memory", "1GiB", "--max-model-len", "512", "--request-timeout-s", "5"),
    )

    configs = [(spec, load_config(CONFIG_OF[spec.kind], own_flags(spec))) for spec in specs]

    assert len(configs) == 9
    for spec, config in configs:
        assert config.name == spec.name
        assert config.log_format == "json"
        if isinstance(config, SchedulerConfig):
            assert config.max_num_batched_tokens == 77
            assert not config.enable_prefix_caching
        elif isinstance(config, WorkerConfig):
            assert (config.dtype, config.kv_cache_memory) == ("float32", 2**30)
            assert config.max_model_len == 512
        elif isinstance(config, GatewayConfig):
            assert config.allowed_origins == ["http://a", "http://b"]
            assert config.request_timeout_s == 5
        else:
            assert config.served_model_name == "org/tiny"


def test_services_meet_in_the_mesh_directory() -> None:
    specs = {spec.kind: load_config(CONFIG_OF[spec.kind], own_flags(spec)) for spec in plan()}

    assert specs["gateway"].tokenizer_address == specs["tokenizer"].bind
    assert specs["tokenizer"].scheduler_address == specs["scheduler"].bind
    assert specs["worker"].scheduler_address == specs["scheduler"].bind


def test_gateways_take_the_ports_of_the_place_and_the_others_probe_ports_in_a_row() -> None:
    specs = plan("--gateways", "2", "--workers", "2", "--probe-port", "9100")

    ports = {
        spec.name: match[1]
        for spec in specs
        if (match := re.search(r"--(?:probe-)?port=(\d+)", " ".join(spec.command)))
    }

    assert ports == {
        "scheduler-0": "9100",
        "worker-0": "9101",
        "worker-1": "9102",
        "tokenizer-0": "9103",
        "gateway-0": "9000",
        "gateway-1": "9001",
    }


def test_several_workers_share_the_cores_unless_told_otherwise() -> None:
    assert "--cpu-threads=4" in own_flags(plan("--workers", "2")[1])
    assert "--cpu-threads=3" in own_flags(plan("--workers", "2", "--cpu-threads", "3")[1])
    assert not any("cpu-threads" in flag for flag in own_flags(plan()[1]))


def test_the_api_key_travels_by_variable_and_only_to_gateways() -> None:
    specs = plan("--api-key", "s3cret")

    assert not any("s3cret" in word for spec in specs for word in spec.command)
    keys = {spec.kind: spec.environ.get(API_KEY_VARIABLE) for spec in specs}
    assert keys == {"gateway": "s3cret", "tokenizer": None, "scheduler": None, "worker": None}


def test_variables_of_ours_are_told_by_flag_and_others_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPLITFUSE_MAX_NUM_SEQS", "5")
    environ = {"SPLITFUSE_MAX_NUM_SEQS": "5", "SPLITFUSE_WORKERS": "1", CACHE_VARIABLE: "/c"}

    scheduler = plan(environ={**environ, "HF_TOKEN": "t"})[0]

    assert "--max-num-seqs=5" in scheduler.command
    ours = {name for name in scheduler.environ if name.startswith("SPLITFUSE_")}
    assert ours == {CACHE_VARIABLE}
    assert scheduler.environ["HF_TOKEN"] == "t"


def test_the_working_directory_is_not_on_the_path_of_a_service() -> None:
    assert all(spec.command[1] == "-P" for spec in plan())


def test_configuration_and_the_python_api_mean_the_same_cache() -> None:
    assert cache.CACHE_VARIABLE == CACHE_VARIABLE
