import pytest

from splitfuse.bench.machine import best_precision, field_of
from splitfuse.bench.processor import busy_seconds


def test_stolen_time_is_busy_and_guest_time_is_not_counted_twice() -> None:
    times = {"user": 3.0, "system": 1.0, "idle": 9.0, "iowait": 2.0, "steal": 0.5, "guest": 1.0}

    assert busy_seconds(times) == 4.5


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("fma avx512f avx512_bf16", "bfloat16"), ("fma avx512f", "float32"), ("", "float32")],
)
def test_bfloat16_is_for_cpus_that_multiply_it(flags: str, precision: str) -> None:
    cpuinfo = f"processor\t: 0\nmodel name\t: A CPU: fast\nflags\t\t: {flags}\nmodel name : B\n"

    assert field_of(cpuinfo, "model name") == "A CPU: fast"
    assert best_precision(field_of(cpuinfo, "flags")) == precision
