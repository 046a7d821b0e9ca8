"""A calibration is found again by whoever it holds for, and by nobody else."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from common.messages import StepTiming
from services.worker.calibration_store import (
    MAX_FILE_BYTES,
    CalibrationKey,
    CalibrationStore,
    default_directory,
    known_or_measured,
    make_key,
)
from services.worker.engine import Engine
from tests.unit.worker.conftest import OPTIONS

KEY = CalibrationKey(
    model="0123456789abcdef",
    device="AMD EPYC, cpu family 26, model 2",
    backend="cpu",
    dtype="bfloat16",
    num_threads=2,
    cpu_isa="auto",
    block_size=16,
    room_tokens=1024,
    version="0.1.0",
)
TIMINGS = (StepTiming(128, 128, 8256, 1, 0, 40_000_000), StepTiming(1, 65, 65, 1, 1, 7_000_000))


def only_file(directory: Path) -> Path:
    (file,) = directory.iterdir()
    return file


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    store = CalibrationStore(tmp_path / "made" / "when needed")

    store.save(KEY, TIMINGS)

    assert store.load(KEY) == TIMINGS


def test_the_last_one_saved_counts_and_nothing_else_is_left(tmp_path: Path) -> None:
    store = CalibrationStore(tmp_path)
    store.save(KEY, TIMINGS)

    store.save(KEY, TIMINGS[:1])

    assert store.load(KEY) == TIMINGS[:1]
    assert only_file(tmp_path).suffix == ".json"


@pytest.mark.parametrize("field", CalibrationKey.__struct_fields__)
def test_a_calibration_of_anything_else_is_not_found(tmp_path: Path, field: str) -> None:
    store = CalibrationStore(tmp_path)
    store.save(KEY, TIMINGS)
    value = getattr(KEY, field)
    other = msgspec.structs.replace(KEY, **{field: value + type(value)("1")})

    assert store.load(other) is None


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[: len(content) // 2], id="cut off"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: b"\xff" + content, id="not text"),
        pytest.param(lambda content: content.replace(b'"layout": 1', b'"layout": 2'), id="layout"),
        pytest.param(lambda content: content.replace(b'"cpu"', b'"gpu"'), id="another key"),
        pytest.param(lambda content: content.replace(b"128", b'"x"', 1), id="not a count"),
        pytest.param(lambda content: b" " * MAX_FILE_BYTES + content, id="huge"),
    ],
)
def test_a_damaged_or_foreign_file_is_ignored_with_one_line(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    store = CalibrationStore(tmp_path)
    store.save(KEY, TIMINGS)
    file = only_file(tmp_path)
    file.write_bytes(damage(file.read_bytes()))

    with capture_logs() as lines:
        assert store.load(KEY) is None

    assert [line["event"] for line in lines] == ["calibration ignored"]
    assert lines[0]["path"] == str(file)


def test_a_directory_that_cannot_be_made_costs_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = CalibrationStore(tmp_path / "file" / "directory")

    with capture_logs() as lines:
        store.save(KEY, TIMINGS)
        found = store.load(KEY)

    assert found is None
    assert lines[0]["event"] == "calibration not kept"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPLITFUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibration"


def calibration_of(model: Path, engine: Engine, on_pass: Callable[[], None]) -> tuple[object, ...]:
    return known_or_measured(engine, model, OPTIONS, lambda: 0.0, on_pass)


def test_the_second_start_measures_nothing(cache: Path, tiny_llama: tuple[Path, object]) -> None:
    model = tiny_llama[0]
    engine = Engine(model, OPTIONS)
    passes: list[None] = []
    first = calibration_of(model, engine, lambda: passes.append(None))
    assert passes
    assert first
    passes.clear()

    second = calibration_of(model, engine, lambda: passes.append(None))

    assert second == first
    assert not passes
    assert only_file(cache).is_file()


def test_the_key_tells_what_the_engine_runs_on(
    cache: Path, tiny_llama: tuple[Path, object]
) -> None:
    model = tiny_llama[0]
    engine = Engine(model, OPTIONS)

    key = make_key(model, OPTIONS, engine.join)

    assert (key.backend, key.dtype, key.block_size) == ("reference", "float32", 8)
    assert key.num_threads == 1
    assert default_directory() == cache


def test_models_of_one_shape_share_a_calibration(
    tiny_llama: tuple[Path, object], tmp_path: Path
) -> None:
    engine = Engine(tiny_llama[0], OPTIONS)
    config = (tiny_llama[0] / "config.json").read_bytes()
    (tmp_path / "config.json").write_bytes(config)

    same = make_key(tmp_path, OPTIONS, engine.join)
    (tmp_path / "config.json").write_bytes(config + b"\n")
    other = make_key(tmp_path, OPTIONS, engine.join)

    assert same == make_key(tiny_llama[0], OPTIONS, engine.join)
    assert other.model != same.model
