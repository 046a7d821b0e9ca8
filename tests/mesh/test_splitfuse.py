"""Under a backlog, real steps carry exactly the budget, and running streams go on."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from services.scheduler.splitfuse import TILE
from tests.support import load
from tests.support.mesh import Mesh, Service, wait_until

BUDGET = 50  # a bucket of the histogram of tokens per step ends here
NUM_STREAMS = 8
NUM_PROMPTS = 10
PROMPT_TOKENS = 1500

pytestmark = pytest.mark.mesh


def a_stream(index: int) -> dict[str, Any]:
    return {"model": "tiny", "prompt": [9, index], "max_tokens": 600, "seed": index}


def a_long_prompt(index: int) -> dict[str, Any]:
    ids = [4 + (index * 31 + i * (index + 3)) % 380 for i in range(PROMPT_TOKENS)]
    return {"model": "tiny", "prompt": ids, "max_tokens": 1}


async def flood(url: str) -> list[load.Stream]:
    """Long prompts arrive while streams run."""
    progress: asyncio.Queue[int] = asyncio.Queue()
    async with load.client() as http:
        streams = [
            asyncio.create_task(load.stream(http, url, progress, ignore_eos=True, **a_stream(i)))
            for i in range(NUM_STREAMS)
        ]
        for _ in range(NUM_STREAMS * 4):
            await progress.get()
        await asyncio.gather(
            *(load.complete(http, url, **a_long_prompt(i)) for i in range(NUM_PROMPTS))
        )
        return await asyncio.gather(*streams)


def steps_of_at_most(scheduler: Service, num_tokens: int) -> float:
    """From the histogram of tokens per step."""
    return scheduler.metric("iteration_tokens_total_bucket", le=f"{float(num_tokens)}")


@pytest.mark.parametrize("partition", ["balanced", "greedy"])
def test_passes_carry_the_budget_and_never_more(partition: str, tiny_model: Path) -> None:
    flags = ("--max-num-batched-tokens", str(BUDGET), "--partition", partition)
    with Mesh(
        tiny_model,
        scheduler_flags=flags,
        tokenizer_flags=("--served-model-name", "tiny"),
        worker_flags=("--kv-cache-memory", "32MiB", "--cpu-threads", "1"),
    ) as mesh:
        scheduler = mesh.of("scheduler")[0]

        streams = asyncio.run(flood(mesh.url))

        assert {stream.usage["completion_tokens"] for stream in streams} == {600}
        total = NUM_STREAMS * 602 + NUM_PROMPTS * PROMPT_TOKENS
        wait_until(
            lambda: scheduler.metric("prompt_tokens_total") >= NUM_PROMPTS * PROMPT_TOKENS,
            "the scheduler has counted",
            deadline_s=10,
        )
        # `balanced` cuts the last prompt, behind which none waits, into even chunks of two tiles.
        num_even = PROMPT_TOKENS / (2 * TILE) if partition == "balanced" else 0
        backlog = scheduler.metric("backlog_steps_total") - num_even
        assert backlog > NUM_PROMPTS * PROMPT_TOKENS / BUDGET / 2
        assert scheduler.metric("full_backlog_steps_total") >= 0.95 * backlog
        assert scheduler.metric("iteration_tokens_total_sum") <= total
        num_steps = scheduler.metric("iteration_tokens_total_count")
        assert steps_of_at_most(scheduler, BUDGET) == num_steps
