"""The shell: a scheduler service on a link in memory; the test plays tokenizers and workers."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

import pytest
from prometheus_client import REGISTRY

from common.config import SchedulerConfig, load_config
from common.link import Peer
from common.messages import (
    CancelRequest,
    Heartbeat,
    LiveRequests,
    Refused,
    RequestFailed,
    StepPlan,
    StepRejected,
    TokenDeltas,
    UnknownRequests,
)
from common.token_ids import unpack_ids
from services.scheduler.service import SchedulerService
from tests.support.checking_worker import CheckingWorker, completion
from tests.support.memory_link import MemoryLink
from tests.support.scheduler_mesh import a_request

TOKENIZER = Peer("tokenizer", "tokenizer-0", "t0")
WORKER = Peer("worker", "worker-0", "w0")
DEADLINE_S = 5.0


class Stage:
    """A running service, its link, and a worker that answers when told to."""

    def __init__(self) -> None:
        self.link = MemoryLink()
        config = load_config(SchedulerConfig, ["--max-num-batched-tokens", "16"])
        identity = Peer("scheduler", "scheduler-0", "s0")
        self.service = SchedulerService(config, identity, make_link=lambda: self.link)
        self.worker = CheckingWorker()
        self._num_read = 0

    async def settle(self) -> None:
        """Until the service has handled all that was delivered."""
        while not self.link._events.empty():  # noqa: ASYNC110  a link has no event for "all read"
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def join(self, peer: Peer = WORKER) -> None:
        self.link.peer_up(peer)
        self.link.deliver(peer, self.worker.join)
        await self.settle()

    async def run_worker(self) -> None:
        """Answer plans until there are none."""
        while True:
            for receiver, message in self.link.sent[self._num_read :]:
                if receiver == WORKER.instance_id and isinstance(message, StepPlan):
                    self.worker.send(message)
            self._num_read = len(self.link.sent)
            if not self.worker.plans:
                return
            self.link.deliver(WORKER, self.worker.run())
            await self.settle()

    def tokens_of(self, request_id: str) -> list[int]:
        return [
            token_id
            for _, message in self.link.sent
            if isinstance(message, TokenDeltas)
            for delta in message.deltas
            if delta.request_id == request_id
            for token_id in unpack_ids(delta.token_ids)
        ]


@asynccontextmanager
async def running() -> AsyncIterator[Stage]:
    stage = Stage()
    await stage.service.start()
    task = asyncio.create_task(stage.service.run())
    stage.link.peer_up(TOKENIZER)
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield stage
    finally:
        task.cancel()
        await asyncio.wait({task})
        await stage.service.stop("test over")
        if not task.cancelled():
            task.result()


def run(play: Coroutine[None, None, None]) -> None:
    asyncio.run(play)


def test_a_request_travels_to_the_worker_and_its_tokens_back() -> None:
    async def play() -> None:
        async with running() as stage:
            await stage.join()
            request = a_request("r", [5, 6, 7], max_tokens=6)
            stage.link.deliver(TOKENIZER, request)
            await stage.settle()
            await stage.run_worker()

            assert stage.tokens_of("r") == completion([5, 6, 7], request.sampling, 64)
            assert stage.service.is_idle

    run(play())


def test_it_is_ready_once_a_worker_is_attached_and_says_so() -> None:
    async def play() -> None:
        async with running() as stage:
            before = stage.service.is_ready
            await stage.join()

            assert (before, stage.service.is_ready) == (False, True)
            assert stage.link.status is not None
            assert stage.link.status.ready
            assert stage.link.status.limits is not None

    run(play())


def test_draining_is_told_and_what_runs_is_finished() -> None:
    async def play() -> None:
        async with running() as stage:
            await stage.join()
            stage.link.deliver(TOKENIZER, a_request("r", [5, 6, 7]))
            await stage.settle()

            stage.service.drain()
            assert stage.link.status is not None
            assert stage.link.status.draining
            assert not stage.service.is_ready
            assert not stage.service.is_idle

            await stage.run_worker()
            assert len(stage.tokens_of("r")) == 8
            assert stage.service.is_idle

    run(play())


def test_cancelling_and_losing_the_tokenizer_free_requests() -> None:
    async def play() -> None:
        async with running() as stage:
            await stage.join()
            for number in range(3):
                stage.link.deliver(TOKENIZER, a_request(f"r{number}", [number]))
            stage.link.deliver(TOKENIZER, CancelRequest("r0", "client_disconnected"))
            await stage.settle()
            assert not stage.service.is_idle

            stage.link.peer_down(TOKENIZER)
            await stage.settle()
            assert stage.service.is_idle

    run(play())


def test_an_audit_is_answered_with_what_is_not_here() -> None:
    async def play() -> None:
        async with running() as stage:
            stage.link.deliver(TOKENIZER, a_request("known", [1]))
            stage.link.deliver(TOKENIZER, LiveRequests(("known", "ghost")))
            await stage.settle()

            assert stage.link.sent == [("t0", UnknownRequests(("ghost",)))]

    run(play())


def test_a_refusal_reaches_the_tokenizer() -> None:
    async def play() -> None:
        async with running() as stage:
            await stage.join()
            stage.link.deliver(TOKENIZER, a_request("r", [1] * 64))
            await stage.settle()

            (sent,) = [m for _, m in stage.link.sent if isinstance(m, RequestFailed)]
            assert (sent.request_id, sent.code) == ("r", "context_length_exceeded")

    run(play())


def test_a_tokenizer_that_does_not_read_loses_its_requests_and_the_others_do_not() -> None:
    async def play() -> None:
        async with running() as stage:
            other = Peer("tokenizer", "tokenizer-1", "t1")
            stage.link.peer_up(other)
            await stage.join()
            stage.link.deliver(TOKENIZER, a_request("stuck", [1], max_tokens=9))
            stage.link.deliver(other, a_request("fine", [2], max_tokens=9))
            await stage.settle()
            stage.link.full.add(TOKENIZER.instance_id)
            await stage.run_worker()

            assert stage.tokens_of("stuck") == []
            assert len(stage.tokens_of("fine")) == 9
            assert stage.service.is_idle

    run(play())


def test_a_plan_that_the_workers_queue_does_not_take_is_sent_later() -> None:
    async def play() -> None:
        async with running() as stage:
            await stage.join()
            stage.link.full.add(WORKER.instance_id)
            stage.link.deliver(TOKENIZER, a_request("r", [1, 2], max_tokens=5))
            await stage.settle()
            assert stage.link.sent == []

            stage.link.full.clear()
            stage.link.deliver(TOKENIZER, LiveRequests(("r",)))  # any event will do
            await stage.settle()
            await stage.run_worker()
            assert len(stage.tokens_of("r")) == 5

    run(play())


def test_a_lost_worker_is_replaced_by_the_next() -> None:
    async def play() -> None:
        async with running() as stage:
            await stage.join()
            stage.link.deliver(TOKENIZER, a_request("r", [1, 2], max_tokens=5))
            await stage.settle()
            stage.link.peer_down(WORKER)
            await stage.settle()
            assert not stage.service.is_ready

            stage.worker = CheckingWorker()
            stage._num_read = len(stage.link.sent)
            await stage.join()
            await stage.run_worker()
            assert len(stage.tokens_of("r")) == 5

    run(play())


def test_a_draining_worker_gets_nothing_new() -> None:
    async def play() -> None:
        async with running() as stage:
            await stage.join()
            stage.link.peer_changed(WORKER, Heartbeat(ready=True, draining=True))
            stage.link.deliver(TOKENIZER, a_request("r", [1, 2]))
            await stage.settle()

            assert stage.link.sent == []
            assert not stage.service.is_ready

    run(play())


def test_a_worker_that_cannot_serve_here_is_told_why() -> None:
    async def play() -> None:
        async with running() as stage:
            stage.worker.block_size = 0
            await stage.join()

            assert stage.link.sent == [
                ("w0", Refused("block_size is 0, it must be between 1 and 16777216"))
            ]

    run(play())


def test_a_refused_step_is_planned_anew() -> None:
    async def play() -> None:
        async with running() as stage:
            await stage.join()
            stage.link.deliver(TOKENIZER, a_request("r", [1, 2], max_tokens=1))
            await stage.settle()
            (plan,) = [m for _, m in stage.link.sent if isinstance(m, StepPlan)]
            stage._num_read = len(stage.link.sent)
            stage.link.deliver(WORKER, StepRejected(plan.step_id, "unknown"))
            await stage.settle()
            await stage.run_worker()

            assert len(stage.tokens_of("r")) == 1

    run(play())


def test_stopping_before_it_started_is_fine() -> None:
    run(Stage().service.stop("not needed"))


def test_counters_are_exported_under_the_names_of_the_field(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.scheduler.service.TICK_S", 0.001)

    def exported(name: str) -> float:
        return REGISTRY.get_sample_value(f"splitfuse:{name}") or 0.0

    names = (
        "generation_tokens_total",
        "prompt_tokens_total",
        "num_steps_total",
        "request_queue_time_seconds_count",
    )

    async def play() -> None:
        before = [exported(name) for name in names]
        length = REGISTRY.get_sample_value(
            "splitfuse:scheduler_requests_finished_total", {"finished_reason": "length"}
        )
        async with running() as stage:
            await stage.join()
            stage.link.deliver(TOKENIZER, a_request("r", [1, 2, 3], max_tokens=4))
            await stage.settle()
            await stage.run_worker()
            while exported(names[0]) < before[0] + 4:  # noqa: ASYNC110  nor has the registry
                await asyncio.sleep(0)

        after = [exported(name) for name in names]
        assert [a - b for a, b in zip(after, before, strict=True)] == [4, 3, 4, 1]
        assert REGISTRY.get_sample_value(
            "splitfuse:scheduler_requests_finished_total", {"finished_reason": "length"}
        ) == 1 + (length or 0.0)
        assert exported("kv_cache_usage_perc") == 0

    run(play())
