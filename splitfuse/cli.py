"""The verbs of the command line.

Exit codes: 0 done, 1 failed, 2 unusable option, 3 cannot start, 130 interrupted.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

from common.config import EXIT_CONFIG, load_config
from common.errors import ConfigError, SplitfuseError
from splitfuse.app_tree import python_command, python_environment
from splitfuse.options import ChatConfig, FetchConfig, KeysConfig, ServeConfig, StopConfig
from splitfuse.restart_policy import EXIT_CANNOT_START

EXIT_INTERRUPTED = 130
SERVICES = ("gateway", "tokenizer", "scheduler", "worker")

# Tools that run the scheduler's core without a mesh: module, arguments before the person's, help.
TOOLS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "simulate": (
        "services.scheduler.simulation",
        ("simulate",),
        "what a load would do, on a virtual clock",
    ),
    "plan": (
        "services.scheduler.simulation",
        ("plan",),
        "how many replicas, and which settings, a load needs",
    ),
    "replay": ("services.scheduler.replay", (), "decide again what a scheduler recorded"),
}


def run(argv: Sequence[str]) -> int:
    """Run one verb; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if argv else EXIT_CONFIG
    verb, *rest = argv
    if verb in SERVICES:
        _become(f"services.{verb}", rest)
    if verb in TOOLS:
        module, before, _ = TOOLS[verb]
        _become(module, [*before, *rest])
    if verb == "--version":
        verb = "version"
    if verb not in VERBS:
        print(f"splitfuse: unknown verb {verb!r}\n\n{_help()}", file=sys.stderr)
        return EXIT_CONFIG
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return VERBS[verb][0](rest)
    except ConfigError as error:
        print(f"splitfuse {verb}: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except SplitfuseError as error:
        print(f"splitfuse {verb}: {error}", file=sys.stderr)
        return EXIT_CANNOT_START
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _become(module: str, argv: Sequence[str]) -> None:
    """Replace this process, so that signals and exit codes are the module's own."""
    command = [*python_command(module), *argv]
    os.execve(command[0], command, python_environment(os.environ))  # noqa: S606  our own


def _serve(argv: Sequence[str]) -> int:
    config = load_config(ServeConfig, argv)
    from splitfuse.serving import serve
    from splitfuse.terminal import Terminal

    serve(config, Terminal())
    return 0


def _chat(argv: Sequence[str]) -> int:
    config = load_config(ChatConfig, argv)
    from splitfuse.chat import chat

    return chat(config)


def _bench(argv: Sequence[str]) -> int:
    from splitfuse.bench.cli import bench

    return bench(argv)


def _fetch(argv: Sequence[str]) -> int:
    config = load_config(FetchConfig, argv)
    from splitfuse.models import fetch_model, resolve_model

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if config.to is None:
        print(resolve_model(config.model, progress))
    else:
        print(fetch_model(config.model, config.to.absolute(), progress))
    return 0


def _keys(argv: Sequence[str]) -> int:
    config = load_config(KeysConfig, argv)
    from common.curve import SECRET_FILE, generate_keys, load_keys

    if config.keep and (config.directory / SECRET_FILE).exists():
        load_keys(config.directory)
    else:
        generate_keys(config.directory)
    print(f"Keys are in {config.directory}: give every service --mesh-keys {config.directory}")
    return 0


def _stop(argv: Sequence[str]) -> int:
    config = load_config(StopConfig, argv)
    from splitfuse.stop import stop

    return stop(config.url)


def _version(argv: Sequence[str]) -> int:
    if argv:
        raise ConfigError(f"takes no arguments, got {' '.join(argv)}")
    try:
        print(version("splitfuse"))
    except PackageNotFoundError:
        print("not installed: run from the source tree")
    return 0


VERBS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "serve": (_serve, "serve a model on this machine: all four services"),
    "chat": (_chat, "chat in the terminal with a running server"),
    "stop": (_stop, "end a server on this machine"),
    "bench": (_bench, "measure servers under load, compare scheduling policies"),
    "fetch": (_fetch, "fetch a model without serving it"),
    "keys": (_keys, "make the keys that encrypt tcp links of a mesh"),
    "version": (_version, "print the version"),
}


def _help() -> str:
    lines = ["usage: splitfuse VERB [options]   (splitfuse VERB --help lists them)", ""]
    lines += [f"  {verb:<12}{help_text}" for verb, (_, help_text) in VERBS.items()]
    lines += [f"  {verb:<12}{help_text}" for verb, (_, _, help_text) in TOOLS.items()]
    return "\n".join([*lines, f"  {' | '.join(SERVICES)}   run one service"])
