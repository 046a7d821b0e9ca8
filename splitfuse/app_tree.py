"""Where `common`, `kernels` and `services` are: a folder that goes first on a service's path.

In a checkout it is the repository root. A wheel must not claim such plain names in site-packages,
so it carries them in `splitfuse/_app`; only processes of our own ever have that on their path.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from splitfuse import __file__ as _package_file

_PACKAGE = Path(_package_file).resolve().parent


def app_tree() -> Path:
    """The folder that holds `services/`."""
    carried = _PACKAGE / "_app"
    return carried if carried.is_dir() else _PACKAGE.parent


def use_app_tree() -> None:
    """Let this process, which must be ours, import `common`."""
    tree = str(app_tree())
    if tree not in sys.path:
        sys.path.insert(0, tree)


def python_command(module: str) -> list[str]:
    """Run `module` of ours in a new interpreter; -P keeps the working directory off its path."""
    return [sys.executable, "-P", "-m", module]


def module_and_arguments(command: Sequence[str]) -> tuple[str, list[str]]:
    """What a command that begins with `python_command` runs, and on what."""
    module = len(python_command("")) - 1
    return command[module], list(command[module + 1 :])


def python_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for such an interpreter: our folders first, then whatever it had."""
    paths = [str(app_tree()), str(_PACKAGE.parent), environ.get("PYTHONPATH", "")]
    return {**environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, paths)))}
