"""`splitfuse bench replicas`: does throughput grow with the number of workers?"""

from rich.console import Console

from common.workload.arrivals import ClosedLoop
from splitfuse.bench.options import ReplicasConfig
from splitfuse.bench.own_server import local_model, own_server
from splitfuse.bench.results import new_results
from splitfuse.bench.session import Session, options_of


def replicas(config: ReplicasConfig, console: Console) -> int:
    """Measure; returns the exit code: 0 if no request failed.

    Raises:
        ConfigError, StartupError: an option or a server is no use.
    """
    servers = {_label(n): [*config.flags, f"--workers={n}"] for n in config.workers}
    results = new_results("replicas", options_of(config), config.slas, servers)
    session = Session(config, results, console)
    model = local_model(config.model)
    try:
        for round_number in range(1, config.rounds + 1):
            for num_workers in config.workers:
                label = _label(num_workers)
                with own_server(label, model, servers[label], config) as server:
                    session.warm_up(server.target)
                    session.measure(
                        server.target,
                        ClosedLoop(num_workers * config.clients_per_worker),
                        label=label,
                        round_number=round_number,
                        num_workers=num_workers,
                        tree=server.tree,
                    )
    finally:
        session.finish()
    return 1 if any(t.failure for run in results.runs for t in run.timelines) else 0


def _label(num_workers: int) -> str:
    return f"{num_workers}-workers"
