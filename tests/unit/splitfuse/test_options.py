import pytest

from common.config import (
    GatewayConfig,
    SchedulerConfig,
    ServiceOptions,
    TokenizerConfig,
    WorkerConfig,
    load_config,
)
from common.errors import ConfigError
from splitfuse.options import ChatConfig, ServeConfig

NOT_ON_ONE_MACHINE = {
    *("name", "mesh_keys", "allow_plaintext_tcp"),
    *("bind", "tokenizer_address", "scheduler_address"),
}


def test_every_flag_of_a_service_is_a_flag_of_serve_unless_it_is_about_one_process() -> None:
    services = (GatewayConfig, TokenizerConfig, SchedulerConfig, WorkerConfig)
    theirs = {field for config in services for field in config.model_fields}

    assert theirs - NOT_ON_ONE_MACHINE <= ServeConfig.model_fields.keys()
    assert NOT_ON_ONE_MACHINE - {"bind", "tokenizer_address", "scheduler_address"} <= (
        ServiceOptions.model_fields.keys()
    )


def test_serve_without_arguments_serves_the_default_model() -> None:
    config = load_config(ServeConfig, [])

    assert config.model is None
    assert (config.host, config.port) == ("127.0.0.1", 8000)


def test_the_model_is_an_argument_not_a_flag() -> None:
    assert load_config(ServeConfig, ["org/name", "--port", "1"]).model == "org/name"


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(ConfigError, match="--max-num-seq"):
        load_config(ServeConfig, ["--max-num-seq", "3"])


def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITFUSE_MAX_SEQS", "3")

    with pytest.raises(ConfigError, match="SPLITFUSE_MAX_SEQS"):
        load_config(ServeConfig, [])


def test_the_cache_variable_is_known_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITFUSE_CACHE", "/somewhere")

    load_config(ServeConfig, [])
    load_config(WorkerConfig, ["--model", "/m"])


def test_one_socket_cannot_serve_two_gateways() -> None:
    with pytest.raises(ConfigError, match="uds"):
        load_config(ServeConfig, ["--uds", "/s", "--gateways", "2"])


def test_ports_of_all_gateways_must_exist() -> None:
    with pytest.raises(ConfigError, match="65535"):
        load_config(ServeConfig, ["--port", "65535", "--gateways", "2"])


def test_the_key_of_a_chat_can_come_by_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITFUSE_API_KEY", "k")
    config = load_config(ChatConfig, [])

    assert config.api_key is not None
    assert config.api_key.get_secret_value() == "k"
    assert "'k'" not in repr(config)
