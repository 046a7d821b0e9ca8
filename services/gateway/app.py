"""The routes: OpenAI's API under /v1, probes and metrics beside it."""

import hmac
import importlib.metadata
import time
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from common.clock import Clock
from common.config import GatewayConfig
from common.metrics import exposition
from services.gateway import metrics
from services.gateway.generate import GenerateEndpoint
from services.gateway.http_errors import HttpError
from services.gateway.http_io import (
    REQUEST_ID_HEADER,
    TARGET_TBT_HEADER,
    request_id_of,
    send_error,
)
from services.gateway.mesh import Mesh
from services.gateway.streams import ServedModel

API_PREFIX = "/v1"

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def build_app(config: GatewayConfig, mesh: Mesh, clock: Clock) -> Starlette:
    """The gateway as an ASGI application; it starts and stops nothing of its own."""
    pages = _Pages(mesh)
    middleware = []
    if config.allowed_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=config.allowed_origins,
                allow_methods=["GET", "POST", "OPTIONS"],
                allow_headers=[
                    *("authorization", "content-type"),
                    *(REQUEST_ID_HEADER, TARGET_TBT_HEADER),
                ],
                expose_headers=[REQUEST_ID_HEADER, "retry-after"],
            )
        )
    if config.api_key is not None:
        key = config.api_key.get_secret_value()
        middleware.append(Middleware(ApiKeyMiddleware, api_key=key))
    return Starlette(
        routes=[
            Route(
                "/v1/chat/completions",
                GenerateEndpoint("chat", config, mesh, clock),
                methods=["POST"],
            ),
            Route(
                "/v1/completions",
                GenerateEndpoint("completion", config, mesh, clock),
                methods=["POST"],
            ),
            Route("/v1/models", pages.models),
            Route("/v1/models/{model:path}", pages.model),
            Route("/health", pages.live),
            Route("/health/live", pages.live),
            Route("/health/ready", pages.ready),
            Route("/version", pages.version),
            Route("/metrics", pages.metrics),
        ],
        middleware=middleware,
        exception_handlers={404: _not_found, 405: _method_not_allowed, Exception: _crash},
    )


class ApiKeyMiddleware:
    """Lets nothing under /v1 through without the key."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._expected = f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(API_PREFIX):
            given = [value for name, value in scope["headers"] if name == b"authorization"]
            if len(given) != 1 or not hmac.compare_digest(given[0], self._expected):
                await send_error(send, _unauthorized(bool(given)), request_id_of(scope))
                return
        await self._app(scope, receive, send)


def _unauthorized(has_header: bool) -> HttpError:
    what = "is wrong" if has_header else "is missing"
    return HttpError(
        401,
        "invalid_api_key",
        f"the API key {what}: send it as 'Authorization: Bearer KEY'",
        headers={"www-authenticate": "Bearer"},
    )


class _Pages:
    """Everything that only reads the state."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._created = int(time.time())

    async def models(self, request: Request) -> Response:
        served = self._mesh.state.models
        data = [self._model_object(name, model) for name, model in sorted(served.items())]
        return _json(request, {"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        model = self._mesh.state.models.get(name)
        if model is None:
            error = HttpError(
                404, "model_not_found", f"the model {name[:200]!r} does not exist", "model"
            )
            return _error(request, error)
        return _json(request, self._model_object(name, model))

    def _model_object(self, name: str, model: ServedModel) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "splitfuse",
            "max_model_len": model.limits.max_model_len,
        }

    async def live(self, request: Request) -> Response:
        """The process serves its event loop; whether it can generate is `ready`'s business."""
        return _json(request, {"status": "ok"})

    async def ready(self, request: Request) -> Response:
        state = self._mesh.state
        layers = {
            "gateway": "draining" if self._mesh.draining else "ok",
            "tokenizer": "ok" if state.num_tokenizers else "missing",
            # A tokenizer is ready only behind a ready scheduler, and that only with a worker.
            "scheduler and worker": "ok"
            if state.is_ready
            else "missing"
            if state.num_tokenizers
            else "unknown",
        }
        is_ready = all(layer == "ok" for layer in layers.values())
        payload = {"status": "ok" if is_ready else "unavailable", "layers": layers}
        return _json(request, payload, 200 if is_ready else 503)

    async def version(self, request: Request) -> Response:
        return _json(request, {"version": _version()})

    async def metrics(self, request: Request) -> Response:
        self._mesh.report_status()
        return Response(exposition(), headers={"content-type": _METRICS_TYPE})


def _version() -> str:
    try:
        return importlib.metadata.version("splitfuse")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # run from a source tree that was never installed


def _json(
    request: Request, payload: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    request_id = request_id_of(request.scope)
    own = {"content-type": "application/json"} | (headers or {})
    if request_id is not None:
        own[REQUEST_ID_HEADER] = request_id
    return Response(msgspec.json.encode(payload), status, own)


def _error(request: Request, error: HttpError) -> Response:
    metrics.http_errors.labels(status=error.status).inc()
    return _json(request, error.body, error.status, dict(error.headers))


async def _not_found(request: Request, _error_: Exception) -> Response:
    message = f"there is nothing at {request.url.path[:200]}"
    return _error(request, HttpError(404, "not_found", message))


async def _method_not_allowed(request: Request, error: Exception) -> Response:
    message = f"{request.url.path[:200]} does not take {request.method}"
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return _error(request, HttpError(405, "method_not_allowed", message, headers=headers))


async def _crash(request: Request, _error_: Exception) -> Response:
    return _error(request, HttpError(500, "internal_error", "the server has a bug: see its log"))
