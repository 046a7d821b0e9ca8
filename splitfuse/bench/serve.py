"""`splitfuse bench serve`: one load on a server that runs already."""

from pathlib import Path

from rich.console import Console
from tokenizers import Tokenizer

from common.errors import ConfigError
from common.workload.arrivals import Arrivals, ClosedLoop, OpenLoop
from common.workload.load_maker import LoadMaker
from splitfuse.bench.options import ServeBenchConfig, SweepConfig
from splitfuse.bench.own_server import api_key
from splitfuse.bench.results import new_results
from splitfuse.bench.session import Session, options_of
from splitfuse.bench.sse_client import Endpoint
from splitfuse.bench.target import Target, find_target, served_model

TOKENIZER_FILE = "tokenizer.json"


def serve(config: ServeBenchConfig, console: Console) -> int:
    """Measure; returns the exit code: 0 if no request failed.

    Raises:
        ConfigError, StartupError: an option, or the server, is no use.
    """
    results = new_results("serve", options_of(config), config.slas, {config.url: []})
    session = Session(config, results, console)
    arrivals = _arrivals(config, session.loads)
    target = running_target(config.url, config)
    session.warm_up(target)
    try:
        run = session.measure(target, arrivals, label=config.url)
    finally:
        session.finish()
    return 1 if any(timeline.failure for timeline in run.timelines) else 0


def running_target(url: str, config: ServeBenchConfig | SweepConfig) -> Target:
    """A server that somebody started.

    Raises:
        ConfigError, StartupError: it is not there, or takes no request that we can make.
    """
    key = api_key(config)
    endpoint = Endpoint.of(url, key)
    tokenizer = None if config.tokenizer is None else _tokenizer(config.tokenizer)
    model = config.served_model_name or served_model(url, key)
    return find_target(endpoint, model, tokenizer, config.temperature)


def _arrivals(config: ServeBenchConfig, loads: LoadMaker) -> Arrivals:
    recorded = loads.recorded
    if recorded is not None:
        if config.clients is not None or config.request_rate is not None:
            raise ConfigError("the trace says when requests come: leave clients and rate out")
        return recorded
    if config.request_rate is not None:
        return OpenLoop(config.request_rate, config.burstiness or 1.0)
    return ClosedLoop(config.clients or 1)


def _tokenizer(path: Path) -> Tokenizer:
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"there is no tokenizer file {file}")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001  the library raises nothing more precise
        raise ConfigError(f"{file} is no tokenizer: {error}") from None
