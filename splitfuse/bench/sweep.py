"""`splitfuse bench sweep`: scheduling policies compared over numbers of clients.

All servers of a round run at once, one of them under load while the others idle, and take turns
at every number of clients, so that a machine which drifts does so under all of them alike.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from rich.console import Console

from common.workload.arrivals import ClosedLoop
from splitfuse.bench.options import SweepConfig
from splitfuse.bench.own_server import local_model, own_server
from splitfuse.bench.process_tree import ProcessTree
from splitfuse.bench.results import new_results
from splitfuse.bench.serve import running_target
from splitfuse.bench.session import Session, options_of
from splitfuse.bench.target import Target

Contender = tuple[str, Target, ProcessTree | None]  # the processes are known if they are ours


def sweep(config: SweepConfig, console: Console) -> int:
    """Measure; returns the exit code: 0 if no request failed.

    Raises:
        ConfigError, StartupError: an option or a server is no use.
    """
    servers = config.servers if config.url is None else {config.url: []}
    results = new_results("sweep", options_of(config), config.slas, servers)
    session = Session(config, results, console)
    try:
        for round_number in range(1, config.rounds + 1):
            with _contenders(config) as contenders:
                for _, target, _ in contenders:
                    session.warm_up(target)
                _one_round(session, contenders, config.clients, round_number)
    finally:
        session.finish()
    return 1 if any(t.failure for run in results.runs for t in run.timelines) else 0


def _one_round(
    session: Session, contenders: Sequence[Contender], clients: Sequence[int], round_number: int
) -> None:
    for turn, num_clients in enumerate(clients):
        # who went last goes first, so that no server always follows the same other
        backwards = (turn + round_number) % 2 == 0
        for label, target, tree in reversed(contenders) if backwards else contenders:
            session.measure(
                target,
                ClosedLoop(num_clients),
                label=label,
                round_number=round_number,
                num_workers=None if tree is None else 1,
                tree=tree,
            )


@contextmanager
def _contenders(config: SweepConfig) -> Iterator[list[Contender]]:
    if config.url is not None:
        yield [(config.url, running_target(config.url, config), None)]
        return
    model = local_model(config.model)
    with ExitStack() as servers:
        yield [
            (label, server.target, server.tree)
            for label, flags in config.servers.items()
            for server in [servers.enter_context(own_server(label, model, flags, config))]
        ]
