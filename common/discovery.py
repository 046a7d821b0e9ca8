"""Which endpoints an address stands for, and which of them to dial now.

`tcp://HOST:PORT` stands for every A and AAAA record of HOST, `ipc:///DIRECTORY` for every socket of
the wanted kind in it. Both are looked up again and again; nothing is registered anywhere.
"""

import asyncio
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from common.messages import ServiceKind

SOCKET_SUFFIX = ".sock"


def socket_path(directory: str, kind: ServiceKind, instance_id: str) -> Path:
    """Where an instance listens in an ipc directory."""
    return Path(directory) / f"{kind}-{instance_id}{SOCKET_SUFFIX}"


def split_tcp(address: str) -> tuple[str, int]:
    """`tcp://HOST:PORT` → host without brackets, port."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def tcp_endpoint(ip: str, port: int) -> str:
    """The inverse, for an IP address of either family."""
    return f"tcp://[{ip}]:{port}" if ":" in ip else f"tcp://{ip}:{port}"


async def find_endpoints(address: str, kind: ServiceKind) -> frozenset[str]:
    """All endpoints that `address` stands for at this moment.

    Raises:
        OSError: the name cannot be resolved, or the directory cannot be read.
    """
    if address.startswith("ipc://"):
        directory = address.removeprefix("ipc://")
        # Here and now: handing it to a thread and back takes longer than a local directory does.
        names = [name for name in os.listdir(directory) if name.startswith(f"{kind}-")]
        return frozenset(f"{address}/{name}" for name in names if name.endswith(SOCKET_SUFFIX))
    host, port = split_tcp(address)
    loop = asyncio.get_running_loop()
    records = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return frozenset(tcp_endpoint(str(sockaddr[0]), port) for *_, sockaddr in records)


class AddressBook:
    """Pure: the endpoints found, those dialled, and when to dial the others.

    An endpoint is listed (discovery found it last time), dialled (a connection exists), both or
    neither; in the last case it is forgotten.
    """

    def __init__(self) -> None:
        self._listed: frozenset[str] = frozenset()
        self._dialled: set[str] = set()
        self._not_before: dict[str, float] = {}  # endpoint -> clock seconds
        self._twin: dict[str, str] = {}  # endpoint -> another that leads to the same instance

    def found(self, endpoints: Iterable[str]) -> frozenset[str]:
        """Discovery's newest answer; returns the dialled endpoints that it no longer lists."""
        self._listed = frozenset(endpoints)
        self._forget_unlisted()
        return frozenset(self._dialled - self._listed)

    def due(self, now: float) -> list[str]:
        """The endpoints to dial now, in order of name; they count as dialled from here on."""
        endpoints = [
            endpoint
            for endpoint in sorted(self._listed - self._dialled)
            if now >= self._not_before.get(endpoint, now)
            and self._twin.get(endpoint) not in self._dialled
        ]
        self._dialled.update(endpoints)
        return endpoints

    def hung_up(self, endpoint: str, redial_at: float, twin: str | None = None) -> None:
        """The connection is gone; dial again from `redial_at` on, and not while `twin` lasts."""
        self._dialled.discard(endpoint)
        self._not_before[endpoint] = redial_at
        self._twin.pop(endpoint, None)
        if twin is not None and twin != endpoint:
            self._twin[endpoint] = twin
        self._forget_unlisted()

    def _forget_unlisted(self) -> None:
        for memory in (self._not_before, self._twin):
            for endpoint in [e for e in memory if e not in self._listed]:
                del memory[endpoint]
