import sys
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.workload.measures import Percentiles
from common.workload.plots import (
    Point,
    plot_goodput,
    plot_latency_throughput,
    plot_pass_time,
    plot_scaling,
    plot_token_latency,
)

CURVES = {
    "splitfuse": [Point(1, 2.0), Point(2, 3.0, 2.5, 3.5)],
    "prefill-first": [Point(1, 2.5), Point(2, 6.0)],
}
BARS = {"splitfuse": Percentiles(mean=0.1, p50=0.07, p90=0.18, p95=0.19, p99=0.3, max=0.4)}


def draw_all(folder: Path, suffix: str) -> list[Path]:
    paths = [folder / f"{name}{suffix}" for name in "abcde"]
    plot_latency_throughput(paths[0], {"long prompts": CURVES, "short prompts": CURVES})
    plot_goodput(paths[1], {"4 tok/s": CURVES})
    plot_token_latency(paths[2], {"16 clients": BARS})
    plot_scaling(paths[3], CURVES)
    plot_pass_time(paths[4], CURVES)
    return paths


def test_equal_numbers_give_equal_files(tmp_path: Path) -> None:
    first = draw_all(tmp_path / "first", ".svg")
    again = draw_all(tmp_path / "again", ".svg")

    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert all(b"<svg" in path.read_bytes() for path in first)


def test_the_names_of_servers_and_of_panels_are_in_the_figure(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    plot_latency_throughput(path, {"long prompts": CURVES})

    text = path.read_text()
    # text is drawn as glyphs; a comment before them says what it is
    for words in ("long prompts", "prefill-first", "mean latency (s)"):
        assert f"<!-- {words} -->" in text


def test_other_numbers_give_other_bars(tmp_path: Path) -> None:
    slower = Percentiles(mean=0.2, p50=0.14, p90=0.36, p95=0.38, p99=0.6, max=0.8)
    plot_token_latency(tmp_path / "a.svg", {"": BARS})
    plot_token_latency(tmp_path / "b.svg", {"": {**BARS, "prefill-first": slower}})

    assert "<!-- 600 -->" not in (tmp_path / "a.svg").read_text()
    assert "<!-- 600 -->" in (tmp_path / "b.svg").read_text()  # its P99 in milliseconds


def test_without_matplotlib_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(ConfigError, match=r"plots need matplotlib.*splitfuse\[bench\]"):
        plot_scaling(tmp_path / "plot.svg", CURVES)
