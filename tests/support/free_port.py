"""A tcp port that nobody listens on."""

import socket


def free_port() -> int:
    """Chosen by the system; another process could take it before the caller does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
