"""`python -m services.tokenizer`: see `--help` for its options."""

from common import lifecycle
from common.config import TokenizerConfig, config_or_exit
from services.tokenizer.service import TokenizerService


def main() -> int:
    """Run until asked to stop; returns the exit code."""
    return lifecycle.run("tokenizer", TokenizerService, config_or_exit(TokenizerConfig))


if __name__ == "__main__":
    raise SystemExit(main())
