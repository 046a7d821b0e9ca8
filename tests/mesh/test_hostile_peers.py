"""Whatever arrives on a mesh socket, the service behind it goes on serving."""

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from common.messages import (
    PROTOCOL_VERSION,
    Chunk,
    Hello,
    LiveRequests,
    Message,
    StepPlan,
    StepResult,
    WorkerJoin,
)
from tests.support import load
from tests.support.mesh import Mesh, wait_until

pytestmark = pytest.mark.mesh

ENCODE = msgspec.msgpack.Encoder().encode
REQUEST: dict[str, Any] = {
    "model": "tiny",
    "prompt": "the",
    "max_tokens": 100,
    "seed": 3,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def mesh(tiny_model: Path) -> Iterator[Mesh]:
    with Mesh(
        tiny_model,
        tokenizer_flags=("--served-model-name", "tiny"),
        worker_flags=("--kv-cache-memory", "16MiB", "--cpu-threads", "1"),
    ) as running:
        yield running


def hello(kind: str, version: int = PROTOCOL_VERSION) -> bytes:
    return ENCODE(Hello(version, kind, f"evil-{kind}", os.urandom(8).hex()))


def join(**changes: object) -> bytes:
    honest = WorkerJoin(
        model="tiny",
        device="cpu",
        backend="reference",
        dtype="float32",
        num_blocks=64,
        block_size=16,
        max_model_len=2048,
        vocab_size=384,
        max_num_seqs=8,
    )
    return ENCODE(msgspec.structs.replace(honest, **changes))


def noise(seed: int) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(rng.randint(0, 300)) for _ in range(200)]


HOSTILE: dict[str, list[bytes]] = {
    "noise": noise(1),
    "noise after a Hello": [hello("tokenizer"), *noise(2)],
    "nothing": [b""] * 50,
    "truncated": [hello("tokenizer")[:5], hello("worker"), join()[:-3]],
    "unknown tag": [hello("tokenizer"), msgspec.msgpack.encode([99, "x"])],
    "deep nesting": [hello("tokenizer"), b"\x91" * 100_000],
    "huge declared length": [hello("tokenizer"), b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"],
    "oversized": [hello("tokenizer"), b"\x00" * (80 * 1024**2)],
    "another version": [hello("tokenizer", version=99), ENCODE(LiveRequests(("a",)))],
    "a kind that does not belong": [hello("gateway"), hello("pirate")],
    "messages that are not the sender's": [
        hello("tokenizer"),
        join(),
        ENCODE(StepResult(1, (), 5)),
        ENCODE(StepPlan(1, (Chunk(1, 0, 1, b"", True),))),
    ],
    "a worker of impossible size": [
        hello("worker"),
        join(num_blocks=0),
        join(block_size=0),
        join(num_blocks=-5),
        join(max_num_seqs=-1),
        join(vocab_size=0),
    ],
    "results of steps that never were": [hello("worker"), ENCODE(StepResult(77, (), -3))],
}


def attack(socket_path: Path, frames: list[bytes]) -> None:
    """Connect, say all of it, leave without a word."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 2000
        socket.connect(f"ipc://{socket_path}")
        for frame in frames:
            socket.send(frame)


async def stream_during(mesh: Mesh, frames: list[bytes]) -> tuple[load.Stream, load.Stream]:
    async with load.client() as http:
        quiet = await load.stream(http, mesh.url, **REQUEST)
        noisy = asyncio.create_task(load.stream(http, mesh.url, **REQUEST))
        for path in mesh.directory.glob("*/*.sock"):
            await asyncio.to_thread(attack, path, frames)
        return quiet, await noisy


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_peer_disturbs_nobody(name: str, mesh: Mesh) -> None:
    pids = [service.process.pid for service in mesh.services]

    quiet, noisy = asyncio.run(stream_during(mesh, HOSTILE[name]))

    assert (noisy.text, noisy.usage, noisy.errors) == (quiet.text, quiet.usage, [])
    assert [s.process.pid for s in mesh.services if s.process.poll() is None] == pids


def test_a_peer_of_another_version_is_told_so_and_logged(mesh: Mesh) -> None:
    path = next(mesh.directory.glob("sch/*.sock"))
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.rcvtimeo = 5000
        socket.connect(f"ipc://{path}")
        socket.send(hello("tokenizer", version=99))
        answers = [msgspec.msgpack.decode(socket.recv())]
        while answers[-1][0] != 2:  # Refused
            answers.append(msgspec.msgpack.decode(socket.recv()))

    reason = answers[-1][1]
    assert "99" in reason
    assert str(PROTOCOL_VERSION) in reason
    log = mesh.of("scheduler")[0].log
    wait_until(lambda: "99" in log.read_text(), "the refusal is in the log", deadline_s=10)


def test_every_message_has_a_tag_of_its_own() -> None:
    tags = [cls.__struct_config__.tag for cls in Message.__subclasses__()]

    assert len(tags) == len(set(tags))
