"""Tcp ports that nobody listens on."""

import random
import socket
from contextlib import ExitStack

# Below those that systems give to whoever connects, from 32768 on: no connection takes one of these
# between the look and its use.
FIRST, END = 10_000, 32_000
ATTEMPTS = 100

_random = random.SystemRandom()  # tests that run beside each other must not draw alike


def free_port(num_ports: int = 1) -> int:
    """The first of so many free ports in a row."""
    for _ in range(ATTEMPTS):
        first = _random.randrange(FIRST, END - num_ports)
        if _are_free(range(first, first + num_ports)):
            return first
    raise RuntimeError(f"no {num_ports} free ports in a row found in {ATTEMPTS} attempts")


def _are_free(ports: range) -> bool:
    with ExitStack() as probes:
        for port in ports:
            probe = probes.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
