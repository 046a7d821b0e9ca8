"""`python -m services.scheduler`: see `--help` for its options."""

from common import lifecycle
from common.config import SchedulerConfig, config_or_exit
from services.scheduler.service import SchedulerService


def main() -> int:
    """Run until asked to stop; returns the exit code."""
    return lifecycle.run("scheduler", SchedulerService, config_or_exit(SchedulerConfig))


if __name__ == "__main__":
    raise SystemExit(main())
