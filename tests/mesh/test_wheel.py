"""A built wheel, in an environment that never saw this checkout."""

import os
import site
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.support.mesh import wait_until
from tests.support.serve_process import Serve, complete, runtime_dir

pytestmark = pytest.mark.mesh

ROOT = Path(__file__).resolve().parents[2]
TREE = ("common", "kernels", "services")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the wheel installed, and our dependencies but not our checkout."""
    home = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install"]
    subprocess.run(
        [*pip, "--no-deps", "--no-index", "--ignore-installed", "--quiet", str(wheel)], check=True
    )
    # A folder named in a .pth file goes on the path, but .pth files in it are not read: the
    # dependencies are there, the editable install of this checkout is not.
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return python


@pytest.fixture
def runtime() -> Iterator[Path]:
    with runtime_dir() as path:
        yield path


def environ_without_us() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_the_wheel_claims_one_name_and_carries_the_whole_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    sources = {
        str(path.relative_to(ROOT))
        for folder in TREE
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".pyc",)
    }

    assert {name.split("/")[0] for name in names} == {"splitfuse"}
    carried = {name.removeprefix("splitfuse/_app/") for name in names if "/_app/" in name}
    assert carried == sources


def serve_from(python: Path, runtime: Path, model: Path) -> Serve:
    command = (str(python.with_name("splitfuse")),)
    flags = ("--port", "0", "--device", "cpu", "--cpu-threads", "1", "--kv-cache-memory", "8MiB")
    return Serve(runtime, str(model), *flags, command=command, environ={"PYTHONPATH": ""})


def test_an_installed_wheel_serves(runtime: Path, clean_python: Path, tiny_model: Path) -> None:
    with serve_from(clean_python, runtime, tiny_model) as serve:
        serve.wait_ready()
        assert complete(serve.url)
        assert serve.stop() == 0


def test_a_service_of_the_wheel_that_is_started_again_finds_its_tree(
    runtime: Path, clean_python: Path, tiny_model: Path
) -> None:
    with serve_from(clean_python, runtime, tiny_model) as serve:
        serve.wait_ready()
        serve.service("scheduler").kill()

        def is_ready_again() -> bool:
            lines = serve.output.splitlines()
            return sum("scheduler-0 " in line and "] ready " in line for line in lines) == 2

        wait_until(is_ready_again, "another scheduler is ready")
        paths = serve.service("scheduler").environ()["PYTHONPATH"].split(os.pathsep)
        assert paths[0].endswith("/_app")
        assert str(ROOT) not in paths


def test_a_script_that_uses_the_wheel_sees_none_of_its_inner_names(clean_python: Path) -> None:
    code = (
        "import importlib.util, splitfuse\n"
        "splitfuse.pipeline, splitfuse.client, splitfuse.ServerError\n"
        f"print([name for name in {TREE} if importlib.util.find_spec(name)])\n"
        "print(splitfuse.__file__)"
    )

    found, file = subprocess.run(
        [str(clean_python), "-P", "-c", code],
        env=environ_without_us(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()

    assert found == "[]"
    assert not Path(file).is_relative_to(ROOT)


def test_an_editable_install_adds_the_repository_root_and_nothing_else() -> None:
    files = [str(file) for file in distribution("splitfuse").files or []]

    modules = [file for file in files if ".dist-info/" not in file and not file.startswith("..")]
    assert modules == ["_splitfuse.pth"]
    path = Path(str(distribution("splitfuse").locate_file("_splitfuse.pth")))
    assert Path(path.read_text().strip()) == ROOT
