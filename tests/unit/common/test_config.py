import os
from pathlib import Path
from typing import Any

import pytest

from common.config import (
    GatewayConfig,
    SchedulerConfig,
    TokenizerConfig,
    WorkerConfig,
    config_or_exit,
    load_config,
)
from common.errors import ConfigError


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SPLITFUSE_")]:
        monkeypatch.delenv(name)


def test_without_flags_the_defaults_hold() -> None:
    config = load_config(SchedulerConfig, [])

    assert config.max_num_seqs == 256
    assert config.bind == "tcp://0.0.0.0:7102"
    assert config.heartbeat_limit_s == 5.0


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPLITFUSE_MAX_NUM_SEQS", "17")
    assert load_config(SchedulerConfig, []).max_num_seqs == 17
    assert load_config(SchedulerConfig, ["--max-num-seqs", "33"]).max_num_seqs == 33


def test_flags_can_be_turned_off() -> None:
    config = load_config(SchedulerConfig, ["--no-enable-prefix-caching"])

    assert config.enable_prefix_caching is False


def test_sizes_are_read_with_units() -> None:
    config = load_config(WorkerConfig, ["--model", "m", "--kv-cache-memory", "2GiB"])

    assert config.kv_cache_memory == 2 * 1024**3


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITFUSE_ALLOWED_ORIGINS", "http://a,http://b")

    assert load_config(GatewayConfig, []).allowed_origins == ["http://a", "http://b"]
    flags = ["--allowed-origins", "http://c,http://d"]
    assert load_config(GatewayConfig, flags).allowed_origins == ["http://c", "http://d"]


def test_secrets_are_not_printed() -> None:
    config = load_config(GatewayConfig, ["--api-key", "hush"])

    assert config.api_key is not None
    assert config.api_key.get_secret_value() == "hush"
    assert "hush" not in repr(config)


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITFUSE_API_KEY", "")
    monkeypatch.setenv("SPLITFUSE_PORT", "")

    config = load_config(GatewayConfig, [])

    assert (config.api_key, config.port) == (None, 8000)


def test_an_empty_key_protects_nothing_and_is_refused() -> None:
    with pytest.raises(ConfigError, match="--api-key: "):
        load_config(GatewayConfig, ["--api-key", ""])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max-num-seqs", "0"], "--max-num-seqs: .*greater than or equal to 1"),
        (["--max-num-seqs", "many"], "--max-num-seqs: .*integer"),
        (["--bind", "somewhere"], "'somewhere' is not an address"),
        (["--bind", "tcp://host"], "is not an address"),
        (["--bind", "tcp://host:0"], "is not an address"),
        (["--bind", "tcp://:7101"], "is not an address"),
        (["--bind", "tcp://host..example:7101"], "is not an address"),
        (["--bind", f"tcp://{'a' * 64}.example:7101"], "is not an address"),
        (["--bind", "tcp://host:65536"], "is not an address"),
        (["--bind", "ipc://relative"], "is not an address"),
        (["--partition", "fair"], "--partition: .*'greedy' or 'balanced'"),
        (["--scheduling-policy", "fcfs"], "--scheduling-policy: .*'prefill-first' or 'orca'"),
        (
            ["--scheduling-policy", "orca", "--partition", "greedy"],
            r"partition \(greedy\) .*orca does not cut them",
        ),
        (
            ["--scheduling-policy", "prefill-first", "--target-tbt-ms", "50"],
            r"target-tbt-ms \(50.0\) .*prefill-first does not cut them",
        ),
        (["--target-tbt-ms", "0"], "--target-tbt-ms: .*greater than 0"),
        (["--target-ttft-ms", "inf"], "--target-ttft-ms: .*finite"),
        (["--heartbeat-limit-s", "1.5"], r"heartbeat-limit-s \(1.5\) must be at least twice"),
        (["--heartbeat-interval-s", "nan"], "--heartbeat-interval-s: "),
        (["--name", "a b"], "--name: "),
        (["--max-nun-seqs", "3"], "unrecognized arguments: --max-nun-seqs"),
    ],
)
def test_an_unusable_option_is_named_with_what_it_should_be(flags: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(SchedulerConfig, flags)


def test_all_unusable_options_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"--max-num-seqs: .*; --partition: "):
        load_config(SchedulerConfig, ["--max-num-seqs", "0", "--partition", "x"])


def test_a_missing_model_is_said() -> None:
    with pytest.raises(ConfigError, match=r"--model: Field required"):
        load_config(TokenizerConfig, [])


def test_a_misspelt_variable_is_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITFUSE_MAX_NUN_SEQS", "3")

    with pytest.raises(ConfigError, match="unknown environment variables: SPLITFUSE_MAX_NUN_SEQS"):
        load_config(SchedulerConfig, [])


def test_another_services_variable_is_not_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITFUSE_BLOCK_SIZE", "32")

    load_config(SchedulerConfig, [])
    assert load_config(WorkerConfig, ["--model", "m"]).block_size == 32


def test_a_config_cannot_be_changed() -> None:
    config = load_config(WorkerConfig, ["--model", "m"])

    with pytest.raises(ValueError, match="frozen"):
        config.model = Path("other")


def test_a_main_prints_what_is_wrong_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        config_or_exit(SchedulerConfig, ["--max-num-seqs", "0"])

    assert raised.value.code == 2
    assert capsys.readouterr().err.startswith("splitfuse scheduler: --max-num-seqs: ")


def test_arguments_count_more_than_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITFUSE_PORT", "1234")
    arguments: dict[str, Any] = {"port": 80}

    assert load_config(GatewayConfig, []).port == 1234
    assert GatewayConfig(**arguments).port == 80
