"""`python -m services.worker`: run one worker."""

import os

from common import lifecycle
from common.config import WorkerConfig, config_or_exit

# How often an OpenMP thread looks whether the others are done before it sleeps. With the default,
# 300 times as often, threads that wait keep the cores from those they wait for whenever another
# process computes too: on 2 cores shared with other work a decode step of SmolLM2-135M took 0.9 s
# instead of 0.07 s. On 2 cores of its own the shorter wait costs 13 to 26 %.
SPIN_COUNT = "1000"


def main() -> int:
    """Run until asked to stop; returns the exit code."""
    config = config_or_exit(WorkerConfig)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    # Only now: it imports torch, which takes seconds, and reads the variable above.
    from services.worker.service import WorkerService

    return lifecycle.run("worker", WorkerService, config)


if __name__ == "__main__":
    raise SystemExit(main())
