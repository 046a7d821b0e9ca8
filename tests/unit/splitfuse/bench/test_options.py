from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from common.config import load_config
from common.errors import ConfigError
from common.workload.arrivals import ClosedLoop, OpenLoop, Recorded
from common.workload.load_maker import LoadMaker
from common.workload.measures import Sla
from splitfuse.bench.options import ReplicasConfig, ServeBenchConfig, SweepConfig


def test_without_flags_a_sweep_is_the_papers() -> None:
    config = load_config(SweepConfig, [])

    assert config.clients == [1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32]
    assert config.slas == [Sla(2.0), Sla(4.0), Sla(6.0)]
    assert set(config.servers) == {"splitfuse", "prefill-first"}


def test_a_policy_and_a_variant_are_flags_of_a_server() -> None:
    config = load_config(
        SweepConfig,
        [
            "--serve-flags=--cpu-threads 2",
            "--policies=orca",
            "--variants=tbt50=--target-tbt-ms 50",
            "--variants=fixed=--max-num-batched-tokens=64 --log-level 'error'",
        ],
    )

    threads = ["--cpu-threads", "2"]
    assert config.servers == {
        "orca": [*threads, "--scheduling-policy=orca"],
        "tbt50": [*threads, "--target-tbt-ms", "50"],
        "fixed": [*threads, "--max-num-batched-tokens=64", "--log-level", "error"],
    }


def test_a_scaled_sla_allows_longer() -> None:
    config = load_config(SweepConfig, ["--sla-tokens-per-s=4", "--sla-scale=0.5"])

    assert config.slas == [Sla(output_tokens_per_s=8.0, prompt_tokens_per_s=1024.0)]


@pytest.mark.parametrize(
    ("config_class", "flags", "words"),
    [
        (SweepConfig, ["--policies=fifo"], "fifo is none of splitfuse"),
        (SweepConfig, ["--policies="], "nothing to measure"),
        (SweepConfig, ["--variants=a b"], "is not LABEL=FLAGS"),
        (SweepConfig, ["--serve-flags='"], "--serve-flags: .*quotation"),
        (SweepConfig, ["--clients=4,2"], "must ascend"),
        (SweepConfig, ["--clients=0"], "greater than or equal to 1"),
        (SweepConfig, ["--url=http://x", "--serve-flags=--x"], "takes no model, flags"),
        (SweepConfig, ["--tokenizer=x"], "tokenizer is for a server that runs already"),
        (SweepConfig, ["--sla-tokens-per-s=0"], "greater than 0"),
        (ServeBenchConfig, ["--clients=2", "--request-rate=1"], "exclude each other"),
        (ServeBenchConfig, ["--burstiness=2"], "needs request-rate"),
        (ServeBenchConfig, ["--trace=x", "--input-len=5"], "trace says all lengths"),
        (
            ServeBenchConfig,
            ["--length-distribution=fixed", "--length-spread=0.1"],
            "fixed lengths have none",
        ),
        (ReplicasConfig, ["--workers=2,1"], "must ascend"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    config_class: type[BaseSettings], flags: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(config_class, flags)


def maker(*flags: str) -> LoadMaker:
    config = load_config(ServeBenchConfig, flags)
    return LoadMaker(config, config.num_prompts, config.seed)


def test_a_closed_loop_has_four_requests_per_client_and_32_more() -> None:
    assert len(maker().load(ClosedLoop(8), "a").shapes) == 64
    assert len(maker("--num-prompts=5").load(ClosedLoop(8), "a").shapes) == 5
    assert len(maker().load(OpenLoop(2.0), "a").shapes) == 100


def test_equal_seeds_and_keys_give_equal_loads() -> None:
    load = maker("--seed=3").load(ClosedLoop(2), "a")

    assert load == maker("--seed=3").load(ClosedLoop(2), "a")
    assert load != maker("--seed=3").load(ClosedLoop(2), "b")
    assert load != maker("--seed=4").load(ClosedLoop(2), "a")


def test_fixed_lengths_are_those_of_the_flags() -> None:
    load = maker("--length-distribution=fixed", "--input-len=9", "--output-len=3").load(
        ClosedLoop(1), "a"
    )

    assert {(s.num_prompt_tokens, s.num_output_tokens) for s in load.shapes} == {(9, 3)}


def test_a_trace_says_lengths_and_times(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(
        '{"prompt_tokens": 7, "output_tokens": 2, "arrival_s": 5}\n'
        '{"prompt_tokens": 8, "output_tokens": 3, "arrival_s": 5.5}\n'
        '{"prompt_tokens": 9, "output_tokens": 4, "arrival_s": 6}\n'
    )
    traced = maker(f"--trace={file}", "--num-prompts=2")

    assert traced.recorded == Recorded((0.0, 0.5))
    load = traced.load(Recorded((0.0, 0.5)), "a")
    assert [shape.num_prompt_tokens for shape in load.shapes] == [7, 8]
    assert maker().recorded is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--trace=/no/such/file"], "cannot read /no/such/file"),
        (["--input-len=5000"], "prompt length 5000 must be in 1..4000"),
    ],
)
def test_lengths_that_cannot_be_had_are_refused(flags: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        maker(*flags)
