"""Bad input over HTTP: a clear JSON error each, and the service goes on as if nothing had been."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import load
from tests.support.mesh import Mesh

MAX_MODEL_LEN = 2048
KV_TOKENS = 1024  # smaller than the context
TOKEN_BYTES = 512  # 2 layers * K and V * 2 heads * 16 * 4 bytes

pytestmark = pytest.mark.mesh


@pytest.fixture(scope="module")
def mesh(tiny_model: Path) -> Iterator[Mesh]:
    with Mesh(
        tiny_model,
        tokenizer_flags=("--served-model-name", "tiny"),
        worker_flags=(
            *("--dtype", "float32", "--cpu-threads", "1"),
            *("--kv-cache-memory", str((KV_TOKENS + 1) * TOKEN_BYTES)),
        ),
    ) as running:
        yield running


def post(mesh: Mesh, content: bytes, path: str = "/v1/completions") -> httpx.Response:
    headers = {"content-type": "application/json"}
    return httpx.post(f"{mesh.url}{path}", content=content, headers=headers, timeout=60)


def body(**fields: Any) -> bytes:
    return json.dumps(
        {"model": "tiny", "prompt": "the scheduler", "max_tokens": 4} | fields
    ).encode()


CASES: dict[str, tuple[bytes, int, tuple[str, ...]]] = {
    "malformed JSON": (b'{"model": "tiny", ', 400, ("JSON",)),
    "not an object": (b"[1, 2]", 400, ()),
    "wrong type": (body(max_tokens="many"), 400, ("max_tokens",)),
    "a float for an integer": (body(n=1.5), 400, ("n",)),
    "unknown model": (body(model="gpt-9"), 404, ("gpt-9", "tiny")),
    "empty prompt": (body(prompt=""), 400, ("prompt",)),
    "empty list of prompts": (body(prompt=[]), 400, ("prompt",)),
    "longer than the context": (body(prompt=[5] * 3000), 400, ("3000", str(MAX_MODEL_LEN))),
    "never fits the KV cache": (body(prompt=[5] * 1500), 400, ("1500", str(KV_TOKENS))),
    "n = 0": (body(n=0), 400, ("n",)),
    "max_tokens = 0": (body(max_tokens=0), 400, ("max_tokens",)),
    "temperature too high": (body(temperature=2.5), 400, ("temperature", "2")),
    "temperature below 0": (body(temperature=-1), 400, ("temperature", "0")),
    "NaN": (body().replace(b"}", b', "temperature": NaN}'), 400, ()),
    "infinite": (body().replace(b"}", b', "top_p": Infinity}'), 400, ()),
    "huge number": (body().replace(b"}", b', "top_p": 1e999}'), 400, ()),
    "invalid UTF-8": (body().replace(b"scheduler", b"sch\xff\xfe"), 400, ()),
    "token id outside the vocabulary": (body(prompt=[1, 384]), 400, ("384",)),
    "negative token id": (body(prompt=[1, -1]), 400, ("-1",)),
    "token id beyond 32 bits": (body(prompt=[2**40]), 400, ("prompt",)),
    "logit_bias of an unknown token": (body(logit_bias={"9999": 1}), 400, ("9999",)),
    "an option that we do not have": (body(suffix="x"), 400, ("suffix",)),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_with_a_json_error(name: str, mesh: Mesh) -> None:
    content, status, mentions = CASES[name]

    response = post(mesh, content)

    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert all(mention in error["message"] for mention in mentions), error


def test_a_body_of_100_mb_is_refused_without_being_kept(mesh: Mesh) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"model": "tiny", "prompt": "'
        for _ in range(100):
            yield b"x" * 1_000_000
        yield b'"}'

    try:
        response = httpx.post(f"{mesh.url}/v1/completions", content=chunks(), timeout=60)
    except httpx.WriteError:
        return  # the server answered and closed before all was sent
    assert response.status_code == 413
    assert "16777216" in response.json()["error"]["message"]


def test_a_declared_body_of_100_mb_is_refused_at_once(mesh: Mesh) -> None:
    response = post(mesh, b"x" * 100_000_000)

    assert response.status_code == 413


def test_other_routes_and_methods_answer_in_json_too(mesh: Mesh) -> None:
    missing = httpx.get(f"{mesh.url}/v1/nothing")
    wrong = httpx.get(f"{mesh.url}/v1/completions")

    assert (missing.status_code, wrong.status_code) == (404, 405)
    assert missing.json()["error"]["message"]
    assert wrong.json()["error"]["message"]


def test_streams_that_run_meanwhile_do_not_notice(mesh: Mesh) -> None:
    request: dict[str, Any] = {
        "model": "tiny",
        "prompt": "the",
        "max_tokens": 200,
        "seed": 3,
        "ignore_eos": True,
    }

    async def together() -> tuple[load.Stream, load.Stream]:
        async with load.client() as http:
            quiet = await load.stream(http, mesh.url, **request)
            noisy = asyncio.create_task(load.stream(http, mesh.url, **request))
            for content, *_ in CASES.values():
                await http.post(f"{mesh.url}/v1/completions", content=content)
            return quiet, await noisy

    quiet, noisy = asyncio.run(together())

    assert noisy.text == quiet.text
    assert noisy.finish_reason == "length"
    assert all(service.process.poll() is None for service in mesh.services)
