"""`python -m services.gateway`: see `--help` for its options."""

from common import lifecycle
from common.config import GatewayConfig, config_or_exit
from services.gateway.service import GatewayService


def main() -> None:
    raise SystemExit(lifecycle.run("gateway", GatewayService, config_or_exit(GatewayConfig)))


if __name__ == "__main__":
    main()
