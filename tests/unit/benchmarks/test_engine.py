"""The benchmark of the engine: its floor counts what must be done, and all of it runs."""

import json
from pathlib import Path

import msgspec
import pytest

from benchmarks.engine import __main__ as engine
from benchmarks.engine.cases import CASES, Case, flop, num_bytes
from benchmarks.engine.machine import Machine
from benchmarks.engine.shapes import SHAPES
from kernels.sampled_rows import gather_early
from services.worker.models.llama import llama

SHAPE = msgspec.structs.replace(
    SHAPES["smollm2-135m"], num_hidden_layers=2, vocab_size=1000, hidden_size=72
)


def test_a_decode_reads_all_weights_and_a_prompt_computes_what_is_sampled_once() -> None:
    program = gather_early(llama(SHAPE).program)
    qkv, o, mlp, head = 120 * 72, 72 * 72, 3 * 1536 * 72, 1000 * 72
    keys_and_values = 2 * 2 * 3 * 8  # layers, heads, dimensions

    decode = Case("decode", ((1, 50),), 1.6)
    prompt = Case("prompt", ((50, 50),), 1.3)

    read = 2 * (2 * (qkv + o + mlp) + head + 50 * keys_and_values)
    assert num_bytes(program, decode, element_bytes=2) == read
    coded = num_bytes(program, decode, element_bytes=2, weight_bytes=1.5)
    assert coded == read - (2 * (qkv + o + mlp) + head) / 2
    pairs = 50 * 51 / 2
    products = 2 * 50 * (2 * qkv + o + mlp) + 2 * (o + mlp + head)
    assert flop(program, prompt) == products + 2 * 4 * pairs * 9 * 8


def test_a_floor_is_the_slower_of_memory_and_arithmetic() -> None:
    machine = Machine(read_bytes_per_s=4e10, flop_per_s=1e12)

    assert machine.floor_s(4e7, 1.0) == 1e-3
    assert machine.floor_s(4e7, 2e9) == 2e-3


def test_it_measures_the_machine_and_every_case(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "SHAPES", {"smollm2-135m": SHAPE})
    monkeypatch.setattr(engine, "CASES", CASES[:1])
    monkeypatch.setattr(engine, "MIN_SECONDS", 0.0)
    report = tmp_path / "report.json"

    engine.main(["--shapes", "smollm2-135m", "--threads", "2", "--json", str(report)])

    [shape] = json.loads(report.read_text())
    [line] = shape["lines"]
    assert line["read_gb_per_s"] > 0.1
    assert line["gflop_per_s"] > 1
    assert line["ms"] > 0
