"""A service that behaves as told, for the tests of `common.lifecycle`; run as a module."""

import asyncio
import gc
import sys
from collections.abc import Mapping

from common import lifecycle
from common.config import SchedulerConfig, config_or_exit
from common.errors import ConfigError, StartupError
from common.link import Peer


def say(words: str) -> None:
    print(words, flush=True)


class TinyService:
    def __init__(self, behaviour: str, identity: Peer) -> None:
        self._behaviour = behaviour
        self._idle = False
        self._draining = asyncio.Event()
        say(f"made {identity.kind}")

    @property
    def addresses(self) -> Mapping[str, str]:
        return {"bind": "ipc:///nowhere"}

    @property
    def is_ready(self) -> bool:
        return True

    @property
    def is_idle(self) -> bool:
        return self._idle

    async def start(self) -> None:
        match self._behaviour:
            case "bad config":
                raise ConfigError("--bind is odd")
            case "cannot start":
                raise StartupError("no such model")
            case "starts slowly":
                say("starting")
                await asyncio.Event().wait()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        match self._behaviour:
            case "returns":
                return
            case "crashes":
                raise ZeroDivisionError
            case "crashes in a callback":
                loop.call_soon(lambda: 1 // 0)
            case "counts what is frozen":
                say(f"frozen {gc.get_freeze_count()}")
            case "loses a connection":
                loop.call_soon(_reset)
            case "crashes while draining":
                await self._draining.wait()
                raise ZeroDivisionError
        await asyncio.Event().wait()

    def drain(self) -> None:
        say("draining")
        self._draining.set()
        if self._behaviour not in {"never idle", "crashes while draining"}:
            asyncio.get_running_loop().call_later(0.05, self._become_idle)

    async def stop(self, reason: str) -> None:
        say(f"stop: {reason}")
        if self._behaviour == "hangs at the end":
            await asyncio.Event().wait()

    def _become_idle(self) -> None:
        say("idle")
        self._idle = True


def _reset() -> None:
    raise ConnectionResetError("peer went away")


if __name__ == "__main__":
    behaviour = sys.argv.pop(1)
    config = config_or_exit(SchedulerConfig)
    raise SystemExit(
        lifecycle.run("scheduler", lambda _, identity: TinyService(behaviour, identity), config)
    )
