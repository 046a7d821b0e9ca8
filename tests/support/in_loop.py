"""Run a coroutine test on the event loop that the services use."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec

import uvloop

Args = ParamSpec("Args")


def in_loop(
    limit_s: float = 30.0,
) -> Callable[[Callable[Args, Coroutine[Any, Any, None]]], Callable[Args, None]]:
    """Decorate an `async def test_...`; it fails after `limit_s`, and on errors in callbacks."""

    def decorate(test: Callable[Args, Coroutine[Any, Any, None]]) -> Callable[Args, None]:
        async def guarded(*args: Args.args, **kwargs: Args.kwargs) -> None:
            unhandled: list[dict[str, Any]] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, c: unhandled.append(c))
            async with asyncio.timeout(limit_s):
                await test(*args, **kwargs)
            assert not unhandled

        @wraps(test)
        def run(*args: Args.args, **kwargs: Args.kwargs) -> None:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(guarded(*args, **kwargs))

        return run

    return decorate
