"""What the shell around the gateway's state measures."""

import asyncio

import pytest
from prometheus_client import REGISTRY

from common.messages import SamplingParams, TextDeltas, TextOptions, TextPrompt, TokenizeRequest
from services.gateway.mesh import Mesh
from services.gateway.streams import GatewayState
from tests.support.memory_link import MemoryLink
from tests.support.set_clock import SetClock
from tests.unit.gateway.playground import DEADLINE_S, a_delta, ready, tokenizer

pytestmark = pytest.mark.anyio


def latencies() -> tuple[float, float]:
    """How many, and their sum in seconds."""
    name = "splitfuse:inter_token_latency_seconds"
    count, total = (REGISTRY.get_sample_value(f"{name}_{what}") for what in ("count", "sum"))
    return count or 0.0, total or 0.0


async def test_tokens_that_come_together_share_the_time_since_those_before() -> None:
    link, clock = MemoryLink(), SetClock()
    mesh = Mesh(link, GatewayState(audit_period_s=10.0), clock)
    running = asyncio.create_task(mesh.run())
    request = TokenizeRequest("r-0", TextPrompt("hi"), SamplingParams(), TextOptions())
    link.peer_up(tokenizer(), ready())
    mailbox = mesh.submit([request], "tiny", timeout_s=None)
    num_before, seconds_before = latencies()

    async with asyncio.timeout(DEADLINE_S):
        link.deliver(tokenizer(), TextDeltas((a_delta("r-0", 0, "a"),)))
        await mailbox.take()
        clock.time_s += 0.4
        link.deliver(tokenizer(), TextDeltas((a_delta("r-0", 1, "bcde", [7, 7, 7, 7]),)))
        await mailbox.take()

    num, seconds = latencies()
    assert num - num_before == 1
    assert seconds - seconds_before == pytest.approx(0.1)
    running.cancel()
    await asyncio.wait({running})
