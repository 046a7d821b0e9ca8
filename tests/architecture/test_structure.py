"""Rules about the code base that no type checker knows."""

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("common", "kernels", "services", "splitfuse")
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def names_used(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield module
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.Attribute(attr=attr):
                yield attr
            case ast.Call(func=ast.Name(id=name)):
                yield f"{name}()"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_pickle_no_eval_and_no_code_from_models(path: Path) -> None:
    used = set(names_used(ast.parse(path.read_text())))

    forbidden = {"pickle", "marshal", "shelve", "send_pyobj", "recv_pyobj", "eval()", "exec()"}
    assert not used & forbidden
    assert "torch.load" not in path.read_text()
    assert "trust_remote_code=True" not in path.read_text()


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.name == "__init__.py"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_package_files_are_a_docstring_and_import_nothing(path: Path) -> None:
    tree = ast.parse(path.read_text())
    lines = (ast.get_docstring(tree) or "").splitlines()

    assert 1 <= len(lines) <= 10
    if path.parent.name != "splitfuse":  # the public face offers names, lazily
        assert len(tree.body) == 1


def test_every_package_folder_has_a_package_file() -> None:
    folders = {path.parent for path in SOURCES}

    assert [f for f in folders if not (f / "__init__.py").exists()] == []


def test_import_splitfuse_loads_neither_torch_nor_services() -> None:
    code = (
        "import sys, splitfuse; splitfuse.pipeline, splitfuse.client;"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & "
        "{'torch', 'transformers', 'services', 'kernels', 'zmq'}))"
    )

    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    assert output.strip() == "[]"


def test_our_top_level_names_are_ours() -> None:
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}

    assert "kernels" not in installed
    for name in ("common", "kernels", "services"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert Path(str(spec.origin)).parents[1] == ROOT


def test_transformers_imports_cleanly_with_our_tree_on_the_path() -> None:
    code = "from transformers import LlamaForCausalLM, AutoTokenizer; print('fine')"

    result = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.stdout.strip() == "fine", result.stderr


def test_architecture_md_fits_its_limit() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= 150


def test_documents_link_only_to_files_that_exist() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} → {target}"


def test_architecture_md_names_only_files_that_exist() -> None:
    paths = {f"/{path.relative_to(ROOT)}" for path in SOURCES}

    named = re.findall(r"`([\w/]+\.py)`", (ROOT / "ARCHITECTURE.md").read_text())

    assert [name for name in named if not any(path.endswith(f"/{name}") for path in paths)] == []
