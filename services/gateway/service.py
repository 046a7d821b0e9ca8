"""The gateway process: an HTTP server and the mesh in one event loop."""

import asyncio
from collections.abc import Callable, Mapping

from common.clock import MonotonicClock
from common.config import GatewayConfig, ServiceOptions
from common.link import Link, Peer
from common.transport import Outbox
from services.gateway.app import build_app
from services.gateway.http_server import HttpServer
from services.gateway.mesh import Mesh
from services.gateway.streams import GatewayState

Connect = Callable[[str, Peer, ServiceOptions], Link]


class GatewayService:
    """A `common.lifecycle.Service`.

    Args:
        connect: makes the link to the tokenizers.
    """

    def __init__(self, config: GatewayConfig, identity: Peer, connect: Connect = Outbox) -> None:
        self._config = config
        self._link = connect(config.tokenizer_address, identity, config)
        clock = MonotonicClock()
        self.mesh = Mesh(self._link, GatewayState(config.audit_period_s), clock)
        self._http = HttpServer(build_app(config, self.mesh, clock), config)

    @property
    def addresses(self) -> Mapping[str, str]:
        return {"url": self._http.url}

    @property
    def is_ready(self) -> bool:
        return self.mesh.state.is_ready and not self.mesh.draining

    @property
    def is_idle(self) -> bool:
        return self.mesh.is_idle

    async def start(self) -> None:
        await self._http.start()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.mesh.run())
            tasks.create_task(self._http.run())

    def drain(self) -> None:
        self.mesh.draining = True
        self.mesh.report_status()

    async def stop(self, reason: str) -> None:
        """Streams that still run get an error event; their work in the mesh is cancelled."""
        self.mesh.shut_down()
        await self._http.stop()
        await self._link.close(reason)
