"""Serve large language models with Dynamic SplitFuse.

    pipe = splitfuse.pipeline()                    # a private mesh, as long as the object lives
    client = splitfuse.serve("org/model")          # a server that outlives this script
    client = splitfuse.client("http://host:8000")  # a server that runs already

Each has an async twin. Attributes load on first use: importing this package is cheap.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splitfuse.api import AsyncPipeline as AsyncPipeline
    from splitfuse.api import Pipeline as Pipeline
    from splitfuse.api import async_client as async_client
    from splitfuse.api import async_pipeline as async_pipeline
    from splitfuse.api import async_serve as async_serve
    from splitfuse.api import client as client
    from splitfuse.api import pipeline as pipeline
    from splitfuse.api import serve as serve
    from splitfuse.api_client import AsyncClient as AsyncClient
    from splitfuse.api_client import Client as Client
    from splitfuse.generate import Response as Response
    from splitfuse.generate import ServerError as ServerError

_HOME = {
    "AsyncPipeline": "api",
    "Pipeline": "api",
    "async_client": "api",
    "async_pipeline": "api",
    "async_serve": "api",
    "client": "api",
    "pipeline": "api",
    "serve": "api",
    "AsyncClient": "api_client",
    "Client": "api_client",
    "Response": "generate",
    "ServerError": "generate",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'splitfuse' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"splitfuse.{_HOME[name]}"), name)
