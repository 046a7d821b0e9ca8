"""How near the Triton backend comes to what a GPU can do, and to torch's own attention.

    python -m benchmarks.gpu [--shapes llama-1b llama-8b llama-70b-layers]
                             [--kv-dtype bfloat16 float8_e4m3fn] [--device cuda:0] [--json FILE]

Weights are random and made on the device. The ceiling of a step is the larger of the bytes it must
read over the measured copy bandwidth, and its arithmetic over the measured rate of a large matrix
product; the share is that ceiling over the median time of a step, steps queued behind each
other. `host` is what a step keeps the host busy. Attention of one layer is timed alone beside
torch's SDPA and flex attention, over dense keys that are theirs alone; few keys stay in the
device's cache, for each of the three.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.engine.cases import BLOCK_SIZE, Case, flop, make_batch, num_bytes
from kernels.backend import Backend
from kernels.program import PagedAttention, Program
from kernels.ragged_batch import RaggedBatch
from services.worker.models.config import ModelConfig
from services.worker.models.llama import llama

DTYPE = torch.bfloat16
_DECODE_BAR, _PREFILL_BAR = 1 / 0.75, 1 / 0.5  # times the ceiling, at most
_DECODE_CONTEXT = 1024


def _llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int) -> ModelConfig:
    return ModelConfig(
        architectures=("LlamaForCausalLM",),
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=16384,
    )


SHAPES = {
    "llama-1b": _llama(2048, 8192, 16, 32, 8),
    "llama-8b": _llama(4096, 14336, 32, 32, 8),
    "llama-70b-layers": _llama(8192, 28672, 8, 64, 8),  # 8 of the 80, which fit one device
}
CASES = (
    *(
        Case(f"decode b{batch} ctx{_DECODE_CONTEXT}", ((1, _DECODE_CONTEXT),) * batch, _DECODE_BAR)
        for batch in (1, 8, 32, 128, 256)
    ),
    *(Case(f"prefill {n}", ((n, n),), _PREFILL_BAR) for n in (512, 2048, 8192)),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the device does at best, measured."""

    copy_bytes_per_s: float  # read and written together
    flop_per_s: float

    def ceiling_s(self, num_bytes: float, flop: float) -> float:
        """No step can be faster."""
        return max(num_bytes / self.copy_bytes_per_s, flop / self.flop_per_s)


@dataclass(frozen=True, slots=True)
class Line:
    """One case of one shape; times in ms."""

    shape: str
    case: str
    ms: float
    least_ms: float
    most_ms: float
    host_ms: float
    share: float  # of the ceiling
    bar: float
    attention_us: dict[str, float]


def measure_limits(device: torch.device) -> Limits:
    """The best of several, over far more than caches hold."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = min(time_each(partial(target.copy_, source)))
    matrix = torch.randn(8192, 8192, dtype=DTYPE, device=device)
    product = torch.empty_like(matrix)
    multiply = min(time_each(partial(torch.mm, matrix, matrix, out=product)))
    return Limits(2 * source.numel() / copy, 2 * 8192**3 / multiply)


def time_each(
    work: Callable[[], object], groups: int = 7, group_seconds: float = 0.1
) -> list[float]:
    """Seconds of one call, in groups of calls that are queued behind each other."""
    work()
    synchronize()
    began = time.perf_counter()
    work()
    synchronize()
    per_group = max(1, int(group_seconds / (time.perf_counter() - began)))
    times = []
    for _ in range(groups):
        began = time.perf_counter()
        for _ in range(per_group):
            work()
        synchronize()
        times.append((time.perf_counter() - began) / per_group)
    return times


def synchronize() -> None:
    """Wait until the device has done everything."""
    torch.cuda.synchronize()


def time_host(work: Callable[[], object], repeats: int = 20) -> float:
    """Seconds that a call keeps the host, with an idle device; the median."""
    times = []
    for _ in range(repeats):
        synchronize()
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    synchronize()
    return statistics.median(times)


def random_weights(program: Program, device: torch.device) -> dict[str, Tensor]:
    """Of a size that keeps activations near 1."""
    torch.manual_seed(0)
    return {
        name: torch.randn(shape, dtype=DTYPE, device=device).mul_(shape[-1] ** -0.5)
        for name, shape in program.weights.items()
    }


def fill_cache(backend: Backend[Tensor], batch: RaggedBatch) -> None:
    """Compute what the batch expects to be cached: a device's clock follows what it reads."""
    cached = batch.kv_lens - np.diff(batch.cu_seqlens_q)
    for sequence in np.flatnonzero(cached).tolist():
        length = int(cached[sequence])
        positions = np.arange(length, dtype=np.int32)
        table = batch.block_tables[sequence : sequence + 1]
        backend.run(
            RaggedBatch(
                token_ids=positions,
                positions=positions,
                cu_seqlens_q=np.array([0, length], np.int32),
                kv_lens=np.array([length], np.int32),
                block_tables=table,
                slot_mapping=table[0, positions // BLOCK_SIZE] * BLOCK_SIZE
                + positions % BLOCK_SIZE,
                logits_index=positions[:1],
            )
        )


def step_bytes(program: Program, case: Case, kv_dtype: torch.dtype) -> float:
    """What a step must read: the weights once, and the K and V of every sequence once."""
    nothing = Case("", (), 1.0)
    kv = num_bytes(program, case, 1) - num_bytes(program, nothing, 1)
    return num_bytes(program, nothing, DTYPE.itemsize) + kv_dtype.itemsize * kv


def time_attention(case: Case, op: PagedAttention, device: torch.device) -> dict[str, float]:
    """Median microseconds of one layer's attention: ours, SDPA, flex attention."""
    return {
        name: round(1e6 * statistics.median(time_each(work)), 1)
        for name, work in (
            ("ours", our_attention(case, op, device)),
            ("sdpa", sdpa(case, op, device)),
            ("flex", flex(case, op, device)),
        )
    }


def our_attention(case: Case, op: PagedAttention, device: torch.device) -> Callable[[], object]:
    """Our launch, planned beforehand as a step does."""
    from kernels.triton.attention_plan import plan_attention
    from kernels.triton.paged_attention import (
        AttentionShape,
        make_partials,
        make_tiling,
        paged_attention,
        tile_config,
    )

    shape = AttentionShape(op.num_heads, op.num_kv_heads, op.head_dim, op.scale)
    config = tile_config(shape.dim_pad, DTYPE.itemsize)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    tiling = make_tiling(shape, config, 2 * processors)
    batch = make_batch(case, vocab_size=2)
    plan = plan_attention(batch, tiling)
    q = torch.randn(batch.num_tokens, op.num_heads, op.head_dim, dtype=DTYPE, device=device)
    cache_shape = (case.num_blocks, BLOCK_SIZE, op.num_kv_heads, op.head_dim)
    k, v = (torch.randn(cache_shape, dtype=DTYPE, device=device) for _ in range(2))
    tables, items, merges = (
        torch.from_numpy(np.ascontiguousarray(array)).to(device)
        for array in (batch.block_tables.ravel(), plan.items, plan.merges)
    )
    num_rows = tiling.max_num_partial_rows(decode_only=False)
    partials = make_partials(num_rows, op.num_heads, op.head_dim, device)
    out = torch.empty_like(q).flatten(1)
    is_decode = batch.num_tokens == batch.num_seqs
    return partial(
        paged_attention,
        *(q, k, v, tables, items, merges, partials, out, shape, tiling, config, is_decode),
    )


def sdpa(case: Case, op: PagedAttention, device: torch.device) -> Callable[[], object]:
    """torch's fused attention over dense keys."""
    q, k, v = _dense(case, op, device)
    return partial(
        F.scaled_dot_product_attention, q, k, v, is_causal=q.shape[2] > 1, enable_gqa=True
    )


def flex(case: Case, op: PagedAttention, device: torch.device) -> Callable[[], object]:
    """torch's compiled attention over dense keys."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, k, v = _dense(case, op, device)
    mask = None
    if (length := q.shape[2]) > 1:

        def causal(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return query >= key

        mask = create_block_mask(causal, None, None, length, length, device=str(device))
    compiled = torch.compile(flex_attention)
    return partial(compiled, q, k, v, block_mask=mask, enable_gqa=True)


def _dense(case: Case, op: PagedAttention, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as `[sequences, heads, tokens, head_dim]`; all sequences of a case are alike."""
    new, kv_len = case.sequences[0]
    shapes = ((op.num_heads, new), (op.num_kv_heads, kv_len), (op.num_kv_heads, kv_len))
    q, k, v = (
        torch.randn(len(case.sequences), *shape, op.head_dim, dtype=DTYPE, device=device)
        for shape in shapes
    )
    return q, k, v


def run(shape: str, kv_dtype: torch.dtype, limits: Limits, device: torch.device) -> list[Line]:
    """All cases of one shape."""
    from kernels.triton.backend import TritonBackend

    program = llama(SHAPES[shape]).program
    attention = next(op for op in program.ops if isinstance(op, PagedAttention))
    backend = TritonBackend(program, random_weights(program, device), kv_dtype=kv_dtype)
    lines = []
    for case in CASES:
        backend.allocate_kv_cache(case.num_blocks, BLOCK_SIZE)
        batch = make_batch(case, program.vocab_size)
        fill_cache(backend, batch)
        step = partial(backend.run, batch)
        times = time_each(step)
        ceiling = limits.ceiling_s(step_bytes(program, case, kv_dtype), flop(program, case))
        median = statistics.median(times)
        line = Line(
            shape=shape,
            case=case.name,
            ms=round(1e3 * median, 3),
            least_ms=round(1e3 * min(times), 3),
            most_ms=round(1e3 * max(times), 3),
            host_ms=round(1e3 * time_host(step), 3),
            share=round(ceiling / median, 3),
            bar=round(1 / case.bar, 2),
            attention_us=time_attention(case, attention, device),
        )
        lines.append(line)
        print(_text(line), flush=True)
    return lines


def _text(line: Line) -> str:
    rivals = ", ".join(f"{name} {us} us" for name, us in line.attention_us.items())
    return (
        f"  {line.case:18} {line.ms:8.3f} ms ({line.least_ms:.3f}-{line.most_ms:.3f}), "
        f"host {line.host_ms:.3f}; {100 * line.share:.0f} % of the ceiling, "
        f"bar {100 * line.bar:.0f} %; attention: {rivals}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--kv-dtype", choices=("bfloat16", "float8_e4m3fn"), default="bfloat16")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu measures a GPU, and torch finds none on this machine.")
    device = torch.device(options.device)
    torch.cuda.set_device(device)
    limits = measure_limits(device)
    versions = {"torch": torch.__version__, "device": torch.cuda.get_device_name(device)}
    print(
        f"{versions['device']}, torch {versions['torch']}: copies "
        f"{limits.copy_bytes_per_s / 1e9:.0f} GB/s, "
        f"multiplies {limits.flop_per_s / 1e12:.0f} TFLOP/s"
    )
    lines: list[Line] = []
    for shape in options.shapes:
        print(f"\n{shape}, KV in {options.kv_dtype}")
        lines += run(shape, getattr(torch, options.kv_dtype), limits, device)
        torch.cuda.empty_cache()
    if options.json is not None:
        report: dict[str, Any] = {
            **versions,
            "limits": asdict(limits),
            "lines": [asdict(line) for line in lines],
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
