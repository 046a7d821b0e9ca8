import asyncio
import socket
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from common.config import GatewayConfig
from common.errors import StartupError
from common.link import Peer
from services.gateway.service import GatewayService
from tests.support.memory_link import MemoryLink
from tests.unit.gateway.playground import DEADLINE_S, playground

pytestmark = pytest.mark.anyio


def a_service(**options: object) -> GatewayService:
    config = GatewayConfig.model_validate(options)
    return GatewayService(config, Peer("gateway", "gateway-0", "g0"), lambda *_: MemoryLink())


async def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(StartupError, match=str(port)):
            await a_service(port=port).start()


async def test_a_host_that_does_not_exist_is_named() -> None:
    with pytest.raises(StartupError, match=r"nowhere\.invalid"):
        await a_service(host="nowhere.invalid").start()


async def test_a_free_port_is_found_and_told() -> None:
    async with playground() as gateway:
        assert gateway.url.startswith("http://127.0.0.1:")
        assert not gateway.url.endswith(":0")


async def test_a_unix_socket_is_private_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    async with playground(uds=path) as gateway:
        assert (await gateway.client.get("/health")).status_code == 200
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert gateway.url == f"unix:{path}"

    assert not path.exists()


async def test_a_socket_file_that_a_dead_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async with playground(uds=path) as gateway:
        assert (await gateway.client.get("/health")).status_code == 200


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    path.write_text("precious")

    with pytest.raises(StartupError, match="in use"):
        await a_service(uds=path).start()
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    "start",
    [
        b"GET /",
        b"GET /health HTTP/1.1\r\nx: ",
        b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nx: ",
    ],
    ids=["url", "header", "trailer"],
)
async def test_a_head_without_end_is_refused(start: bytes) -> None:
    async with playground() as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(start + b"a" * 1_000_000)

        async with asyncio.timeout(DEADLINE_S):
            with suppress(ConnectionResetError):  # what we wrote is not read to its end
                assert b" 400 " in await reader.readline()
        writer.close()
        assert (await gateway.client.get("/health")).status_code == 200


async def test_a_long_body_and_a_head_below_the_limit_are_no_endless_head() -> None:
    async with playground() as gateway:
        headers = {"x-padding": "a" * 60_000}
        for _ in range(2):
            response = await gateway.client.post(
                "/v1/completions", content=b"[" + b"1," * 500_000 + b"1]", headers=headers
            )
            assert "must be a JSON object" in response.text
