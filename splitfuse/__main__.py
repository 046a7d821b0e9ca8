"""`splitfuse VERB ...` and `python -m splitfuse VERB ...`."""

import sys

from splitfuse.app_tree import use_app_tree


def main() -> None:
    """Run the command line and exit with its code."""
    use_app_tree()
    from splitfuse.cli import run  # needs `common`, which is on the path only now

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
