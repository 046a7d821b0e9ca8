"""`splitfuse serve` started to be measured."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.config import ENV_PREFIX
from common.errors import ConfigError
from splitfuse.app_tree import python_command, python_environment
from splitfuse.bench.options import RequestOptions
from splitfuse.bench.process_tree import ProcessTree
from splitfuse.bench.prompts import IdPrompts
from splitfuse.bench.server_process import free_port, server_process
from splitfuse.bench.sse_client import Endpoint
from splitfuse.bench.target import Target, served_model
from splitfuse.cache import cache_dir
from splitfuse.models import resolve_model
from splitfuse.options import ServeConfig


@dataclass(frozen=True, slots=True)
class OwnServer:
    """It is ready."""

    target: Target
    tree: ProcessTree


@contextmanager
def own_server(
    label: str, model: Path, flags: Sequence[str], options: RequestOptions
) -> Iterator[OwnServer]:
    """A ready server; ended when the block ends.

    Args:
        label: what errors and its log file call it.
        flags: of `splitfuse serve`.

    Raises:
        ConfigError: the model's config.json is no use.
        StartupError: it could not start; has its last words.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    own = [*python_command("splitfuse"), "serve", f"--port={port}", *flags, "--", str(model)]
    log = cache_dir() / "bench" / f"{label}.log"
    ready = f"{url}/health/ready"
    with server_process(label, own, _environ(options), ready, log) as server:
        key = api_key(options)
        target = Target(
            Endpoint.of(url, key),
            served_model(url, key),
            IdPrompts(vocab_size(model)),
            temperature=options.temperature,
        )
        yield OwnServer(target, server.tree)


def _environ(options: RequestOptions) -> dict[str, str]:
    """Ours, without the variables that tell the bench what the server has no option for."""
    ours = type(options).model_fields.keys() - ServeConfig.model_fields.keys()
    names = {f"{ENV_PREFIX}{name}".upper() for name in ours}
    kept = {name: value for name, value in os.environ.items() if name.upper() not in names}
    return python_environment(kept)


def api_key(options: RequestOptions) -> str | None:
    """The key in clear, to be sent."""
    return None if options.api_key is None else options.api_key.get_secret_value()


def local_model(name: str | None) -> Path:
    """The directory of a model, fetched if need be.

    Raises:
        ConfigError, StartupError: as `resolve_model`.
    """
    return resolve_model(name, lambda text: print(text, file=sys.stderr, flush=True))


def vocab_size(model: Path) -> int:
    """How many token ids the model knows.

    Raises:
        ConfigError: its config.json does not say.
    """
    try:
        return int(json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{model / 'config.json'} names no vocab_size: {error}") from None
