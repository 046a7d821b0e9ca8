"""The Python API for real: meshes that belong to an object, and one that outlives its script."""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import splitfuse
from splitfuse.app_tree import python_environment
from tests.support.free_port import free_port
from tests.support.mesh import wait_until
from tests.support.processes import run_script
from tests.support.serve_process import runtime_dir

pytestmark = pytest.mark.mesh

OPTIONS: dict[str, Any] = {
    "device": "cpu",
    "cpu_threads": 1,
    "kv_cache_memory": "8MiB",
    "max_num_seqs": 64,
}
GREEDY: dict[str, Any] = {"do_sample": False, "ignore_eos": True}


@pytest.fixture(scope="module", autouse=True)
def runtime() -> Iterator[Path]:
    """Run directories, sockets and logs of these tests are all below one directory."""
    with runtime_dir() as path, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(path))
        patch.setenv("TMPDIR", str(path))
        patch.setenv("XDG_CACHE_HOME", str(path / "cache"))
        patch.setattr(tempfile, "tempdir", None)  # read TMPDIR again
        yield path
    tempfile.tempdir = None


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> Iterator[splitfuse.Pipeline]:
    with splitfuse.pipeline(tiny_model, **OPTIONS) as started:
        yield started


def below(runtime: Path) -> set[str]:
    return {str(p.relative_to(runtime)) for p in runtime.rglob("*") if "cache" not in p.parts}


def test_responses_come_in_order_and_alike_alone_and_together(pipe: splitfuse.Pipeline) -> None:
    prompts = [f"Prompt number {i} says" for i in range(9)]

    together = pipe(prompts, max_new_tokens=7, **GREEDY)
    alone = [pipe(prompt, max_new_tokens=7, **GREEDY)[0] for prompt in prompts]

    assert together == alone
    assert {response.generated_length for response in together} == {7}
    assert {response.finish_reason for response in together} == {"length"}
    assert len({response.generated_text for response in together}) > 1


def test_the_pieces_of_a_stream_are_the_response(pipe: splitfuse.Pipeline) -> None:
    (whole,) = pipe("The scheduler", max_new_tokens=9, **GREEDY)

    pieces = list(pipe.stream("The scheduler", max_new_tokens=9, **GREEDY))

    assert "".join(map(str, pieces)) == whole.generated_text
    assert pieces[-1].generated_length == whole.generated_length
    assert pieces[-1].prompt_length == whole.prompt_length
    assert pieces[-1].finish_reason == "length"


def test_max_length_counts_prompt_and_output(pipe: splitfuse.Pipeline) -> None:
    (response,) = pipe("The scheduler composes", max_length=20, **GREEDY)

    assert response.prompt_length + response.generated_length == 20


def test_the_same_seed_gives_the_same_text_and_another_one_does_not(
    pipe: splitfuse.Pipeline,
) -> None:
    def sample(seed: int) -> str:
        options: dict[str, Any] = {"do_sample": True, "ignore_eos": True}
        return str(pipe("Once", max_new_tokens=12, seed=seed, **options)[0])

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(pipe: splitfuse.Pipeline) -> None:
    with pytest.raises(splitfuse.ServerError, match="2048"):
        pipe("word " * 5000, max_new_tokens=1)


def test_a_pipeline_opens_no_port(pipe: splitfuse.Pipeline) -> None:
    me = psutil.Process()
    listening = [
        connection
        for process in [me, *me.children(recursive=True)]
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    ]

    assert listening == []


def test_a_destroyed_pipeline_leaves_nothing_and_says_so(runtime: Path, tiny_model: Path) -> None:
    before, children = below(runtime), set(psutil.Process().children(recursive=True))
    pipe = splitfuse.pipeline(tiny_model, **OPTIONS)
    assert len(set(psutil.Process().children(recursive=True)) - children) == 5

    pipe.destroy()
    pipe.destroy()

    assert below(runtime) == before
    assert set(psutil.Process().children(recursive=True)) == children
    with pytest.raises(RuntimeError, match="destroyed"):
        pipe("a")


def test_the_async_twin_does_the_same(pipe: splitfuse.Pipeline, tiny_model: Path) -> None:
    async def use() -> tuple[list[splitfuse.Response], str]:
        async with splitfuse.async_pipeline(tiny_model, **OPTIONS) as twin:
            responses = await twin(["a", "b"], max_new_tokens=5, **GREEDY)
            pieces = [str(p) async for p in twin.stream("c", max_new_tokens=5, **GREEDY)]
            return responses, "".join(pieces)

    responses, streamed = asyncio.run(use())

    assert responses == pipe(["a", "b"], max_new_tokens=5, **GREEDY)
    assert streamed == str(pipe("c", max_new_tokens=5, **GREEDY)[0])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_num_seq": 5}, "--max-num-seq"),
        ({"max_num_seqs": 0}, "--max-num-seqs"),
        ({"tensor_parallel": 2}, "tensor_parallel"),
        ({"port": 9000}, "port"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(
    runtime: Path, tiny_model: Path, options: dict[str, Any], named: str
) -> None:
    before = below(runtime)

    with pytest.raises(ValueError, match=named):
        splitfuse.pipeline(tiny_model, **options)

    assert below(runtime) == before


def test_a_model_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="'/no/such/model' is neither"):
        splitfuse.pipeline("/no/such/model")


def test_the_mesh_of_a_killed_script_ends(runtime: Path, tiny_model: Path) -> None:
    before = below(runtime)
    code = (
        "import sys, time, splitfuse\n"
        f"pipe = splitfuse.pipeline({str(tiny_model)!r}, **{OPTIONS})\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=python_environment(os.environ),
        stdout=subprocess.PIPE,
        text=True,
    ) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == "ready\n"
        mesh = psutil.Process(script.pid).children(recursive=True)
        assert len(mesh) == 5
        script.kill()

    wait_until(lambda: not any(process.is_running() for process in mesh), "the mesh has ended")
    # The script's own folder stays, as a killed script cleans nothing up; the mesh's does not.
    assert {path.split("/")[0] for path in below(runtime) - before if "run-" in path} == set()


def test_a_script_that_forgets_to_destroy_still_ends_cleanly(
    runtime: Path, tiny_model: Path
) -> None:
    before = below(runtime)
    code = (
        "import splitfuse\n"
        f"pipe = splitfuse.pipeline({str(tiny_model)!r}, **{OPTIONS})\n"
        "print(len(pipe(['a', 'b'], max_new_tokens=3)))"
    )

    script = run_script(code)

    assert script.stdout == "2\n"
    assert below(runtime) == before


def test_a_served_model_outlives_its_script_until_any_client_ends_it(tiny_model: Path) -> None:
    port = free_port()
    code = (
        "import splitfuse\n"
        f"client = splitfuse.serve({str(tiny_model)!r}, port={port}, api_key='k', **{OPTIONS})\n"
        "print(client('a', max_new_tokens=3)[0].generated_length)"
    )
    script = run_script(code)
    assert script.stdout == "3\n"

    with splitfuse.client(f"http://127.0.0.1:{port}", api_key="k") as client:
        assert client("a", max_new_tokens=2, ignore_eos=True)[0].generated_length == 2
        client.terminate_server()

        with pytest.raises(httpx.ConnectError):
            client("a")
        with pytest.raises(RuntimeError, match="nothing on this machine"):
            client.terminate_server()


def test_serving_on_a_taken_port_fails_whoever_answers_there(tiny_model: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        with pytest.raises(RuntimeError, match=f"cannot serve on 127.0.0.1:{port}"):
            splitfuse.serve(tiny_model, port=port)
