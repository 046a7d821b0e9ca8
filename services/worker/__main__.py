"""`python -m services.worker`: run one worker."""

from common import lifecycle
from common.config import WorkerConfig, config_or_exit
from services.worker.openmp import limit_spinning


def main() -> int:
    """Run until asked to stop; returns the exit code."""
    config = config_or_exit(WorkerConfig)
    limit_spinning()
    # Only now: where a backend computes with torch, that reads what was set above.
    from services.worker.service import WorkerService

    return lifecycle.run("worker", WorkerService, config)


if __name__ == "__main__":
    raise SystemExit(main())
