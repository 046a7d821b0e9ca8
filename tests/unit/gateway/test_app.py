import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from common.clock import MonotonicClock
from common.config import GatewayConfig
from common.messages import Heartbeat
from services.gateway.app import build_app
from services.gateway.mesh import Mesh
from services.gateway.streams import GatewayState
from tests.support.memory_link import MemoryLink
from tests.unit.gateway.playground import Playground, playground, ready

pytestmark = pytest.mark.anyio

COMPLETION = {"model": "tiny", "prompt": "hi"}


# ── errors in one shape ──────────────────────────────────────────────────────────────────────────


ERRORS = [
    ("GET", "/nowhere", b"", 404, "not_found"),
    ("GET", "/v1/nowhere", b"", 404, "not_found"),
    ("GET", "/v1/models/gpt-9", b"", 404, "model_not_found"),
    ("GET", "/v1/completions", b"", 405, "method_not_allowed"),
    ("POST", "/v1/models", b"", 405, "method_not_allowed"),
    ("POST", "/v1/completions", b"{", 400, "invalid_request"),
    ("POST", "/v1/chat/completions", b"\xff", 400, "invalid_request"),
    ("POST", "/v1/completions", b'{"model":"gpt-9","prompt":"x"}', 404, "model_not_found"),
]


async def test_every_error_has_the_same_body() -> None:
    async with playground() as gateway:
        await gateway.tokenizer_up()
        for method, path, content, status, code in ERRORS:
            headers = {"x-request-id": "r-1"}
            response = await gateway.client.request(method, path, content=content, headers=headers)

            assert response.status_code == status
            error = response.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["code"] == code
            assert response.headers["x-request-id"] == "r-1"


async def test_an_unknown_model_names_those_that_are_served() -> None:
    async with playground() as gateway:
        await gateway.tokenizer_up()

        response = await gateway.client.post("/v1/completions", json=COMPLETION | {"model": "x"})

        assert response.status_code == 404
        assert "'x'" in response.json()["error"]["message"]
        assert "tiny" in response.json()["error"]["message"]


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_body_that_is_announced_too_long_is_refused_unread() -> None:
    async with playground(max_body_bytes=1000) as gateway:
        response = await gateway.client.post("/v1/completions", content=b"x" * 1001)

        assert response.status_code == 413
        assert "1001" in response.json()["error"]["message"]
        assert "1000" in response.json()["error"]["message"]


async def test_a_body_that_grows_too_long_is_refused_while_it_comes() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 1_000_000

    async with playground() as gateway:
        response = await gateway.client.post("/v1/completions", content=endless())

        assert response.status_code == 413
        assert str(16 * 1024**2) in response.json()["error"]["message"]


async def test_a_client_that_leaves_in_mid_body_is_nobodys_error() -> None:
    async with playground() as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

        response = await gateway.client.get("/health")

        assert response.status_code == 200


# ── keys and origins ─────────────────────────────────────────────────────────────────────────────


def _routes() -> list[Route]:
    mesh = Mesh(MemoryLink(), GatewayState(10.0), MonotonicClock())
    app = build_app(GatewayConfig.model_validate({}), mesh, MonotonicClock())
    return [route for route in app.routes if isinstance(route, Route)]


async def test_every_route_is_either_public_or_needs_the_key() -> None:
    public = {"/health", "/health/live", "/health/ready", "/version", "/metrics"}
    async with playground(api_key="s3cret") as gateway:
        await gateway.tokenizer_up()
        for route in _routes():
            (method,) = (route.methods or {"GET"}) - {"HEAD"}
            path = route.path.replace("{model:path}", "tiny")

            response = await gateway.client.request(method, path)

            assert (response.status_code == 401) == (route.path not in public), route.path


async def test_a_wrong_key_is_refused() -> None:
    async with playground(api_key="s3cret") as gateway:
        for value in ["Bearer wrong", "Bearer", "s3cret", "Basic s3cret", "bearer S3CRET", "é"]:
            headers = httpx.Headers({"authorization": value}, encoding="utf-8")
            response = await gateway.client.get("/v1/models", headers=headers)

            assert response.status_code == 401
            assert response.json()["error"]["type"] == "authentication_error"
            assert response.headers["www-authenticate"] == "Bearer"


async def test_the_right_key_opens_the_api() -> None:
    async with playground(api_key="s3cret") as gateway:
        await gateway.tokenizer_up()

        headers = {"authorization": "Bearer s3cret"}
        response = await gateway.client.get("/v1/models", headers=headers)

        assert response.status_code == 200


async def test_only_allowed_origins_may_call_from_a_browser() -> None:
    async with playground(allowed_origins=["http://app.test"], api_key="k") as gateway:
        ask = {"access-control-request-method": "POST"}
        good = await gateway.client.options(
            "/v1/completions", headers={"origin": "http://app.test", **ask}
        )
        bad = await gateway.client.options(
            "/v1/completions", headers={"origin": "http://evil.test", **ask}
        )

        assert good.status_code == 200
        assert good.headers["access-control-allow-origin"] == "http://app.test"
        assert bad.status_code == 400
        assert "access-control-allow-origin" not in bad.headers


# ── what the server says of itself ───────────────────────────────────────────────────────────────


async def test_models_are_listed_with_their_limits() -> None:
    async with playground() as gateway:
        await gateway.tokenizer_up(0)
        await gateway.tokenizer_up(1, ready(model="org/other"))
        await gateway.until(lambda: len(gateway.service.mesh.state.models) == 2)

        listed = (await gateway.client.get("/v1/models")).json()
        one = (await gateway.client.get("/v1/models/org/other")).json()

        assert [model["id"] for model in listed["data"]] == ["org/other", "tiny"]
        assert one == listed["data"][0]
        assert one["max_model_len"] == 2048


async def test_readiness_names_the_layer_that_is_missing() -> None:
    async with playground() as gateway:

        async def layers() -> tuple[int, dict[str, Any]]:
            response = await gateway.client.get("/health/ready")
            return response.status_code, response.json()["layers"]

        assert await layers() == (
            503,
            {"gateway": "ok", "tokenizer": "missing", "scheduler and worker": "unknown"},
        )
        await gateway.tokenizer_up(0, Heartbeat(ready=False, draining=False))
        assert await layers() == (
            503,
            {"gateway": "ok", "tokenizer": "ok", "scheduler and worker": "missing"},
        )
        await gateway.tokenizer_up(1)
        assert (await layers())[0] == 200


async def test_liveness_does_not_depend_on_the_mesh() -> None:
    async with playground() as gateway:
        for path in ("/health", "/health/live"):
            assert (await gateway.client.get(path)).status_code == 200


async def test_nothing_is_accepted_before_a_model_is_served() -> None:
    async with playground() as gateway:
        response = await gateway.client.post("/v1/completions", json=COMPLETION)

        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert "not ready" in response.json()["error"]["message"]


async def test_metrics_count_what_was_served() -> None:
    async with playground() as gateway:
        await gateway.tokenizer_up()
        before = await _metric(gateway, 'splitfuse:request_success_total{finished_reason="length"}')
        asked = asyncio.create_task(gateway.client.post("/v1/completions", json=COMPLETION))
        (request,) = await gateway.requests()
        assert await _metric(gateway, "splitfuse:gateway_num_requests") == 1
        gateway.answer(request, "a", "b", finish="length")
        await asked

        after = await _metric(gateway, 'splitfuse:request_success_total{finished_reason="length"}')
        assert after == before + 1
        assert await _metric(gateway, "splitfuse:gateway_num_requests") == 0


async def _metric(gateway: Playground, name: str) -> float:
    text = (await gateway.client.get("/metrics")).text
    values = [line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(values[0]) if values else 0.0


async def test_the_version_is_told() -> None:
    async with playground() as gateway:
        assert set((await gateway.client.get("/version")).json()) == {"version"}
