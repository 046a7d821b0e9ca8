"""A calibration comes back from its file as it was; anything else is refused by name."""

from pathlib import Path

import pytest

from common.calibration_file import CalibrationFile, CurvePoint, encode, read
from common.errors import ConfigError
from common.messages import StepTiming

CALIBRATION = CalibrationFile(
    machine="AMD EPYC, 2 threads",
    model="SmolLM2-135M-Instruct",
    device="cpu",
    backend="cpu",
    dtype="bfloat16",
    curve=(CurvePoint(128, 0, 40.0, 3200.0),),
    timings=(StepTiming(128, 128, 8256, 1, 0, 40_000_000), StepTiming(1, 65, 65, 1, 1, 7_000_000)),
)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_bytes(encode(CALIBRATION))

    assert read(file) == CALIBRATION


def test_people_can_read_it() -> None:
    text = encode(CALIBRATION).decode()

    assert '"machine": "AMD EPYC, 2 threads"' in text
    assert '"tokens_per_s": 3200.0' in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no calibration"),
        (b"[1, 2, 3]", "is no calibration"),
        (b'{"machine": "x"}', "missing required field"),
        (encode(CALIBRATION).replace(b'"layout": 1', b'"layout": 2'), "of layout 2"),
        (encode(CALIBRATION).replace(b"40000000", b'"long"'), "is no calibration"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "other.json"
    file.write_bytes(content)

    with pytest.raises(ConfigError, match=message) as refusal:
        read(file)

    assert str(file) in str(refusal.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none.json: No such file"):
        read(tmp_path / "none.json")


def test_a_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "huge.json"
    with file.open("wb") as sparse:
        sparse.truncate(2**24 + 1)

    with pytest.raises(ConfigError, match="is larger than 16777216 bytes"):
        read(file)
