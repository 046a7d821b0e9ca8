"""A model on a GPU: steps are padded to a few sizes, captured once per size, and replayed.

What is captured is the program up to its first op over the sampled rows: all layers. The rest (the
last norm, the logits) is three launches over exactly the rows that are sampled, queued while the
graph still runs. Steps larger than every size are launched op by op; they take so long on
the device that the host is ahead of it anyway.

A size is captured when a step first needs it, after that step itself; `warm_up` does it beforehand.
"""

from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from kernels.program import Logits, Op, Program
from kernels.ragged_batch import RaggedBatch
from kernels.triton.attention_plan import AttentionPlan
from kernels.triton.batch_check import check_batch
from kernels.triton.executor import Executor
from kernels.triton.graphs import Capture, CudaCapture, Replay
from kernels.triton.input_buffer import InputBuffer
from kernels.triton.sampler import TritonSampler
from kernels.triton.sizes import MIXED_SIZES, GraphSize, choose_size, sizes_up_to
from kernels.triton.step import PlanKey, Step, fits, load_step, plan_step

KV_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)


class TritonBackendError(ValueError):
    """This backend cannot do what it was asked to; the text says why."""


class TritonBackend:
    """A `kernels.backend.Backend` in Triton, for GPUs.

    With TRITON_INTERPRET=1 it also runs on a CPU: right, and thousands of times slower.
    """

    def __init__(
        self,
        program: Program,
        weights: MutableMapping[str, Tensor],
        checkpoint: Callable[[], None] = lambda: None,
        kv_dtype: torch.dtype | None = None,
        capture: Capture | None = None,
    ) -> None:
        """Take over the weights.

        Args:
            program: validated here.
            weights: one tensor per entry of `program.weights`, all of one dtype and device. It is
                emptied; the tensors themselves are kept where they are.
            checkpoint: called between weights; may raise to give up.
            kv_dtype: of the KV cache, one of `KV_DTYPES`; None: the weights' own.
            capture: how steps are captured; None: as CUDA graphs on a GPU, not at all on a CPU.

        Raises:
            ProgramError: the program contradicts itself.
            TritonBackendError: the device or `kv_dtype` is not supported.
        """
        program.validate()
        device = next(iter(weights.values())).device
        _check_kv_dtype(kv_dtype, device)
        if capture is None and device.type == "cuda":
            capture = CudaCapture()
            _sum_in_float32()
        self._executor = Executor(program, weights, kv_dtype, checkpoint)
        self._sampler = TritonSampler()
        self._inputs = InputBuffer(device)
        self._generation = self._inputs.generation
        self._capture = capture
        self._body, self._head = _split(program)
        self._graphs: dict[GraphSize | None, Replay] = {}

    @property
    def name(self) -> str:
        return "triton"

    @property
    def sampler(self) -> TritonSampler:
        return self._sampler

    @property
    def blocks_per_group(self) -> int:
        return 1

    def kv_cache_bytes(self, num_blocks: int, block_size: int) -> int:
        return self._executor.kv_cache_bytes(num_blocks, block_size)

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        self._graphs.clear()
        self._executor.allocate_kv_cache(num_blocks, block_size)

    def prepare_memory(self) -> bool:
        return False

    @torch.inference_mode()
    def run(self, batch: RaggedBatch) -> Tensor:
        """See `kernels.backend`.

        Raises:
            BadBatch: an index of the batch is out of range; nothing was computed.
        """
        check_batch(batch, self._executor.num_blocks, self._executor.block_size)
        with self._on_device():
            return self._run(batch)

    @torch.inference_mode()
    def warm_up(self, max_num_tokens: int, checkpoint: Callable[[], None] = lambda: None) -> None:
        """Compile and capture everything that steps of at most so many tokens need.

        Takes seconds per size the first time on a machine. The KV cache keeps what it holds.

        Args:
            checkpoint: called between sizes; may raise to give up.
        """
        if self._capture is None:
            return
        with self._on_device():
            for size in sizes_up_to(max_num_tokens):
                checkpoint()
                self._run(self._batch_in_scratch(size))

    def _on_device(self) -> AbstractContextManager[object]:
        """Kernels are launched on the current device, which may be another one's."""
        device = self._executor.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _run(self, batch: RaggedBatch) -> Tensor:
        plans = plan_step(batch, self._executor.plan_keys)
        size = self._choose_size(batch, plans)
        scratch_slot = self._executor.num_blocks * self._executor.block_size
        step = load_step(batch, plans, size, scratch_slot, self._inputs)
        self._reserve(step.num_tokens, step.num_logits_rows)
        if size in self._graphs:
            self._graphs[size]()
        else:
            self._run_body(step)
            if size is not None and self._capture is not None:
                self._graphs[size] = self._capture(lambda: self._run_body(step))
        logits = self._executor.run(self._head, step)
        assert logits is not None, "validate() holds: a program ends with Logits"
        return logits

    def _run_body(self, step: Step) -> None:
        self._executor.run(self._body, step)

    def _choose_size(
        self, batch: RaggedBatch, plans: Mapping[PlanKey, AttentionPlan]
    ) -> GraphSize | None:
        """None: the step runs as it is, op by op."""
        if self._capture is None:
            return None
        is_split = any(len(plan.merges) for plan in plans.values())
        size = choose_size(batch.num_tokens, batch.num_seqs, is_split)
        return size if size is not None and fits(size, plans) else None

    def _reserve(self, num_tokens: int, num_logits_rows: int) -> None:
        """Make room, at once for all sizes, since graphs do not survive when buffers move."""
        if self._capture is not None:
            num_tokens = max(num_tokens, MIXED_SIZES[-1])
        moved = self._executor.reserve(num_tokens, num_logits_rows)
        if moved or self._generation != self._inputs.generation:
            self._generation = self._inputs.generation
            self._graphs.clear()

    def _batch_in_scratch(self, size: GraphSize) -> RaggedBatch:
        """Tokens of one size whose K and V go where nobody reads: to the scratch block.

        If attention is to be split, the first sequence has so many keys that it is.
        """
        num_seqs = size.num_tokens if size.decode_only else 1
        num_blocks, block_size = self._executor.num_blocks, self._executor.block_size
        kv_lens = np.full(num_seqs, size.num_tokens // num_seqs, np.int32)
        if size.is_split:
            kv_lens[0] += (2 * size.num_tokens + 8) * max(
                t.keys for t, _ in self._executor.plan_keys
            )
        zeros = np.zeros(size.num_tokens, np.int32)
        return RaggedBatch(
            token_ids=zeros,
            positions=zeros,
            cu_seqlens_q=np.linspace(0, size.num_tokens, num_seqs + 1, dtype=np.int32),
            kv_lens=kv_lens,
            block_tables=np.full(
                (num_seqs, -(-int(kv_lens.max()) // block_size)), num_blocks, np.int32
            ),
            slot_mapping=np.full(size.num_tokens, num_blocks * block_size, np.int32),
            logits_index=zeros[:1],
        )


def _split(program: Program) -> tuple[tuple[Op, ...], tuple[Op, ...]]:
    """The ops before the first over sampled rows, and the rest."""
    by_logits = {name for name, buffer in program.buffers.items() if buffer.rows == "logits"}
    first = next(
        number
        for number, op in enumerate(program.ops)
        if isinstance(op, Logits) or getattr(op, "out", None) in by_logits
    )
    return program.ops[:first], program.ops[first:]


def _check_kv_dtype(kv_dtype: torch.dtype | None, device: torch.device) -> None:
    if kv_dtype is not None and kv_dtype not in KV_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in KV_DTYPES)
        raise TritonBackendError(f"a KV cache of {kv_dtype} is not supported, only of {names}")
    if kv_dtype == torch.float8_e4m3fn and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if torch.version.hip is not None or capability < (8, 9):
            raise TritonBackendError(
                f"a float8_e4m3fn KV cache needs an NVIDIA GPU of compute capability 8.9 or more; "
                f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}"
            )


def _sum_in_float32() -> None:
    """cuBLAS may else add parts of a long sum in 16 bits, against the contract of `linear`."""
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
