from pathlib import Path

import pytest

from common import calibration_file
from common.calibration_file import CalibrationFile
from common.config import load_config
from common.errors import ConfigError
from services.scheduler.cost_model import CostModel, StepShape
from services.scheduler.simulation.devices import Simulated, make_machine, timings_of
from services.scheduler.simulation.options import SimulateConfig
from tests.unit.scheduler.simulation.machines import CURVE

MIB_MODEL = """{"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "vocab_size": 128256, "max_position_embeddings": 131072}"""
SHAPE = StepShape(500, 500, 125_250, 1, 1)


def simulated(*flags: str) -> Simulated:
    return make_machine(load_config(SimulateConfig, flags))


def test_a_curve_is_simulated_with_what_it_does_not_know() -> None:
    machine = simulated(
        "--curve=100:10,200:20", "--context-token-us=2", "--block-size=32", "--link-ms=0.5"
    ).machine

    assert machine.pass_time.ms(SHAPE) == pytest.approx(50 + 500 * 0.002)
    assert (machine.num_blocks, machine.block_size) == (65_536 // 32, 32)
    assert machine.host.link_ms == 0.5


def test_a_descending_curve_is_refused() -> None:
    with pytest.raises(ConfigError, match="--curve: a curve needs two points or more"):
        simulated("--curve=100:10,200:5")


def test_a_gpu_is_simulated_by_its_datasheet(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(MIB_MODEL)
    one = simulated("--gpu=H100", f"--model={tmp_path}")
    two = simulated("--gpu=H100", f"--model={tmp_path}", "--tensor-parallel-size=2")

    assert one.machine.max_model_len == 131_072
    assert one.machine.vocab_size == 128_256
    # 72 GB less 16 GB of weights, at 128 KiB per token
    assert one.machine.num_blocks * 16 == pytest.approx(56e9 / 131_072, rel=0.01)
    assert two.machine.num_blocks > 2 * one.machine.num_blocks
    assert two.machine.pass_time.ms(SHAPE) < one.machine.pass_time.ms(SHAPE)


def test_what_a_gpu_is_assumed_to_reach_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(MIB_MODEL)
    flags = ("--gpu=H100", f"--model={tmp_path}", "--tensor-parallel-size=2")
    said = "\n".join(simulated(*flags).assumptions)

    assert "8.0e9 parameters in 16 bits on 2 x H100: 80 GB, 3350 GB/s, 989 TFLOPS" in said
    assert "75% of the memory bandwidth" in said
    assert "all-reduces" in said
    assert "the services around it: 0" in said


def test_a_model_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(MIB_MODEL.replace("32,", "320,", 1))

    with pytest.raises(ConfigError, match="leave no room for KV"):
        simulated("--gpu=L4", f"--model={tmp_path}")


def test_a_calibration_is_simulated_as_it_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    timings = timings_of(CURVE)
    path.write_bytes(
        calibration_file.encode(
            CalibrationFile("a CPU, 2 threads", "m", "cpu", "cpu", "bfloat16", (), timings)
        )
    )
    found = simulated(f"--calibration={path}")

    assert found.machine.device == "cpu"
    assert found.machine.calibration == timings
    assert found.machine.pass_time.ms(SHAPE) == pytest.approx(CURVE.ms(SHAPE), rel=0.1)
    assert found.assumptions[0] == ("passes as measured of m (bfloat16, cpu) on a CPU, 2 threads")


def test_a_calibration_without_timings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(calibration_file.encode(CalibrationFile("", "", "", "", "", (), ())))

    with pytest.raises(ConfigError, match="has no timings"):
        simulated(f"--calibration={path}")


def test_less_memory_than_a_block_is_refused() -> None:
    with pytest.raises(ConfigError, match="8 tokens of KV do not fill a block of 16"):
        simulated("--curve=100:10,200:20", "--kv-cache-tokens=8")


def test_a_simulated_worker_has_measured_its_passes_before_it_joins() -> None:
    model = CostModel.from_timings(timings_of(CURVE))

    assert model.predict_ms(SHAPE) == pytest.approx(CURVE.ms(SHAPE), rel=0.1)
