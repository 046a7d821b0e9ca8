"""Compile every kernel as its launcher would launch it, for devices that are not here.

    python -m tests.kernels.triton.compile_kernels TARGET...

Prints one JSON object per launch. The launchers run on tensors of the meta device, which have
shapes but no memory; what they would launch is recorded, and compiled for each target. This needs
a process without TRITON_INTERPRET.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
import triton.backends.nvidia
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from kernels.sampling import Biases, Penalties, Randomness
from kernels.triton.attention_plan import ITEM_FIELDS, MERGE_FIELDS
from kernels.triton.embed import embed, embed_positions
from kernels.triton.gated_activation import gated_activation
from kernels.triton.linear import linear
from kernels.triton.logits import logits
from kernels.triton.mixture_of_experts import make_workspace, mixture_of_experts
from kernels.triton.norm import norm
from kernels.triton.paged_attention import (
    AttentionShape,
    make_partials,
    make_tiling,
    paged_attention,
    tile_config,
)
from kernels.triton.rope_store_kv import rope_store_kv
from kernels.triton.sampling import argmax, sample

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Those that have instructions for float8_e4m3fn; on sm_89, attention over it spills 8 bytes.
FLOAT8_TARGETS = {"sm_90", "sm_100"}
TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int64: "i64",
    torch.int32: "i32",
}


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def indices(*shape: int) -> Tensor:
    return meta(*shape, dtype=torch.int32)


def launch_rows(num_rows: int) -> None:
    """Norms, embeddings and activations at the widths of 8B and 70B models."""
    x, weight = meta(num_rows, 8192), meta(8192)
    norm("rms", x, weight, 1e-5, x, residual=x)
    norm("layer", x, weight, 1e-5, x, bias=weight)
    gated_activation(meta(num_rows, 28672), "silu", meta(num_rows, 14336))
    linear(x, meta(8192, 8192), meta(num_rows, 8192), weight, "gelu", meta(num_rows, 8192))
    embed(indices(num_rows), meta(128256, 8192), x)
    embed_positions(indices(num_rows), meta(2050, 8192), x, 1)
    scores = meta(num_rows, 128256)
    logits(x, meta(128256, 8192), scores, meta(*scores.shape, dtype=torch.float32), 30.0)


def launch_rope(kv_dtype: torch.dtype = torch.bfloat16) -> None:
    cache = meta(100, 16, 8, 128, dtype=kv_dtype)
    angles = meta(64, 64, dtype=torch.float32)
    rope_store_kv(meta(64, 48 * 128), 32, (angles, angles), cache, cache, indices(64))


def launch_attention(shape: AttentionShape, kv_dtype: torch.dtype = torch.bfloat16) -> None:
    q = meta(64, (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim)
    cache = meta(100, 16, shape.num_kv_heads, shape.head_dim, dtype=kv_dtype)
    config = tile_config(shape.dim_pad, itemsize=2)
    tiling = make_tiling(shape, config, num_programs=264)
    width = shape.num_heads * shape.head_dim
    paged_attention(
        q[:, :width].view(64, shape.num_heads, shape.head_dim),
        *(cache, cache, indices(64 * 16), indices(80, ITEM_FIELDS), indices(33, MERGE_FIELDS)),
        make_partials(100, shape.num_heads, shape.head_dim, torch.device("meta")),
        *(meta(64, width), shape, tiling, config),
    )


def launch_experts(num_rows: int) -> None:
    x = meta(num_rows, 4096)
    mixture_of_experts(
        *(x, meta(8, 4096), meta(8, 2 * 14336, 4096), meta(8, 4096, 14336), 2, "silu"),
        *(meta(num_rows, 4096), make_workspace(num_rows * 2, 8, 4096, 14336, x), x),
    )


def launch_sampling(num_rows: int) -> None:
    def rows(dtype: torch.dtype) -> Tensor:
        return meta(num_rows, dtype=dtype)

    ints, floats = rows(torch.int64), rows(torch.float32)
    randomness = Randomness(floats, ints, rows(torch.float64), floats, ints, ints)
    scores = meta(num_rows, 128256, dtype=torch.float32)
    biases, penalties = Biases(ints, ints, floats), Penalties(ints, ints, floats, floats)
    argmax(scores)
    sample(scores, randomness, ints, biases, penalties, rows=ints)


LAUNCHES: dict[str, Callable[[], None]] = {
    "one row": lambda: launch_rows(1),
    "rows": lambda: launch_rows(64),
    "rope": launch_rope,
    "attention 32/8x128": lambda: launch_attention(AttentionShape(32, 8, 128, 0.1)),
    "attention 8/8x80": lambda: launch_attention(AttentionShape(8, 8, 80, 0.1)),
    "attention 71/1x64": lambda: launch_attention(AttentionShape(71, 1, 64, 0.1)),
    "attention 8/4x256": lambda: launch_attention(AttentionShape(8, 4, 256, 0.1, 4096, 50.0)),
    "one row of experts": lambda: launch_experts(1),
    "many rows of experts": lambda: launch_experts(512),
    "sampling of one row": lambda: launch_sampling(1),
    "sampling": lambda: launch_sampling(64),
}
FLOAT8_LAUNCHES: dict[str, Callable[[], None]] = {
    "float8 rope": lambda: launch_rope(torch.float8_e4m3fn),
    "float8 attention": lambda: launch_attention(
        AttentionShape(32, 8, 128, 0.1), torch.float8_e4m3fn
    ),
}


def recorded(launch: Callable[[], None]) -> list[tuple[Any, dict[str, Any], dict[str, Any]]]:
    """Kernels that `launch` starts: each with its arguments by name, and its options."""
    calls: list[tuple[Any, dict[str, Any], dict[str, Any]]] = []

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        named = dict(zip(kernel.arg_names, args, strict=False))
        options = {key: value for key, value in kwargs.items() if key not in kernel.arg_names}
        named |= {key: value for key, value in kwargs.items() if key in kernel.arg_names}
        calls.append((kernel, named, options))

    original, JITFunction.run = JITFunction.run, record
    try:
        launch()
    finally:
        JITFunction.run = original
    return calls


def compile_launch(kernel: Any, arguments: dict[str, Any], options: Any, target: str) -> Any:
    """Compile for what the launch itself would specialise on: ones, multiples of 16, alignment."""
    constants = {
        p.name
        for p in kernel.params
        if p.is_constexpr or (type(arguments[p.name]) is int and arguments[p.name] == 1)
    }
    signature, attributes = {}, {}
    for number, name in enumerate(kernel.arg_names):
        value = arguments[name]
        signature[name] = "constexpr" if name in constants else _type_of(value)
        is_multiple = isinstance(value, int) and value % 16 == 0
        if name not in constants and (isinstance(value, Tensor) or is_multiple):
            attributes[(number,)] = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={name: arguments[name] for name in constants},
        attrs=attributes,
    )
    return triton.compile(source, target=TARGETS[target], options=options)


def spilled(compiled: Any) -> int:
    """Bytes of stack and local memory on NVIDIA, vector registers on AMD.

    AMD's scalar registers spill to lanes of vector registers, which costs next to nothing.
    """
    if "amdgcn" in compiled.asm:
        counts = re.findall(r"\.vgpr_spill_count:\s*(\d+)", compiled.asm["amdgcn"])
        assert counts, "no counts in the assembly"
        return sum(map(int, counts))
    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.findall(r"(?:STACK|LOCAL):(\d+)", usage)
    assert found, usage
    return sum(map(int, found))


def _type_of(value: Any) -> str:
    match value:
        case Tensor():
            return "*" + TYPES[value.dtype]
        case int():
            return "i32" if -(2**31) <= value < 2**31 else "i64"
        case _:
            return "fp32"


def compile_all(target: str) -> Iterator[dict[str, Any]]:
    launches = LAUNCHES | (FLOAT8_LAUNCHES if target in FLOAT8_TARGETS else {})
    for name, launch in launches.items():
        for kernel, arguments, options in recorded(launch):
            compiled = compile_launch(kernel, arguments, options, target)
            yield {
                "target": target,
                "launch": name,
                "kernel": kernel.fn.__name__,
                "spilled": spilled(compiled),
                "shared_bytes": compiled.metadata.shared,
            }


if __name__ == "__main__":
    for asked in sys.argv[1:]:
        for report in compile_all(asked):
            print(json.dumps(report), flush=True)
