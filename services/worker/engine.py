"""One model on one device: plan in, result out.

No sockets, no threads, no clock but a stopwatch; whoever owns it calls it from one thread.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from common.config import WorkerOptions
from common.errors import ConfigError
from common.messages import (
    Chunk,
    SampledToken,
    SequenceFault,
    StepPlan,
    StepRejected,
    StepResult,
    WorkerJoin,
)
from kernels.backend import Backend
from kernels.ragged_batch import RaggedBatch
from services.worker.backends import make_backend
from services.worker.device import CPU, num_threads, pick_device, pick_dtype
from services.worker.kv_cache import (
    GIB,
    available_on_cpu,
    available_on_gpu,
    plan_kv_cache,
)
from services.worker.models.config import ModelConfig, read_config
from services.worker.models.registry import make_model
from services.worker.ragged_batch import build_batch
from services.worker.sampler import Sampled, sample
from services.worker.sequence_table import PlanError, SequenceState, SequenceTable
from services.worker.weights import Weights

logger = structlog.get_logger(__name__)

# Sequences that a worker holds at once, running and not yet dropped; only host memory bounds it.
MAX_NUM_SEQS = 1024
# The pass that is run to learn what activations take: the scheduler's default budget on a GPU.
PROFILE_TOKENS = 2048

_PROGRESS_PERIOD_S = 2.0


class Engine:
    """Loads a model and runs steps.

    Args:
        model_dir: in Hugging Face layout.
        options: device, dtype, memory, threads.
        max_model_len: tokens of one sequence, which the KV cache must then hold; None: what the
            model was made for, even if the cache holds less.
        checkpoint: called now and then while loading; may raise to give up.

    Raises:
        StartupError: the model cannot be read, is not supported, or does not fit.
        ConfigError: `max_model_len` is more than the model was made for.
    """

    def __init__(
        self,
        model_dir: Path,
        options: WorkerOptions,
        max_model_len: int | None = None,
        checkpoint: Callable[[], None] = lambda: None,
    ) -> None:
        began = time.perf_counter()
        config = read_config(model_dir)
        _check_length(max_model_len, config)
        model = make_model(config)
        self._device = pick_device(options.device)
        dtype = pick_dtype(options.dtype, self._device, config.dtype)
        weights = Weights(model_dir, model, dtype, _Progress(checkpoint))
        self._backend = make_backend(
            options, self._device, dtype, model.program, weights, checkpoint
        )
        self._block_size = options.block_size
        self._cpu_threads = options.cpu_threads
        num_blocks = self._num_kv_blocks(options, config, max_model_len)
        self._backend.allocate_kv_cache(num_blocks, options.block_size)
        length = max_model_len or config.max_position_embeddings
        self._table = SequenceTable(
            options.block_size, num_blocks, model.program.vocab_size, length, MAX_NUM_SEQS
        )
        self.join = WorkerJoin(
            model=model_dir.resolve().name,
            device=self._device,
            backend=self._backend.name,
            dtype=dtype.name,
            num_blocks=num_blocks,
            block_size=options.block_size,
            max_model_len=length,
            vocab_size=model.program.vocab_size,
            max_num_seqs=MAX_NUM_SEQS,
            blocks_per_group=self._backend.blocks_per_group,
        )
        self._log_loaded(time.perf_counter() - began)

    @property
    def num_sequences(self) -> int:
        """Sequences announced and not dropped."""
        return len(self._table)

    def step(
        self, plan: StepPlan, before_computing: Callable[[], None] = lambda: None
    ) -> StepResult | StepRejected:
        """Run one plan; plans come in the order of their ids.

        Args:
            before_computing: called when the device is about to begin, so that others who need the
                interpreter are let in only then; not called for a plan with nothing to compute.
        """
        began = time.perf_counter_ns()
        try:
            sequences = self._table.apply(plan)
        except PlanError as error:
            return StepRejected(plan.step_id, str(error), error.sequence_ids)
        sampling = [
            sequence for chunk, sequence in zip(plan.chunks, sequences, strict=True) if chunk.sample
        ]
        sampled = self._forward(plan.chunks, sequences, sampling, before_computing)
        self._table.finish(plan.chunks, [s.token_id for s in sampled])
        messages = [
            s.message(sequence.sequence_id) for s, sequence in zip(sampled, sampling, strict=True)
        ]
        return StepResult(
            plan.step_id,
            tuple(m for m in messages if isinstance(m, SampledToken)),
            time.perf_counter_ns() - began,
            tuple(m for m in messages if isinstance(m, SequenceFault)),
        )

    def prepare_memory(self) -> bool:
        """Take some of the memory that later steps will write to.

        Returns:
            Whether there is more to take; each call takes a few milliseconds.
        """
        return self._backend.prepare_memory()

    def reset(self) -> None:
        """Forget all sequences. Their KV stays where it is; nobody reads it any more."""
        self._table.clear()

    def _forward(
        self,
        chunks: tuple[Chunk, ...],
        sequences: list[SequenceState],
        sampling: list[SequenceState],
        before_computing: Callable[[], None],
    ) -> list[Sampled]:
        if not chunks:
            return []
        batch = build_batch(chunks, sequences, self._block_size)
        before_computing()
        logits = self._backend.run(batch)
        return sample(logits, sampling, self._backend.sampler)

    def _num_kv_blocks(
        self, options: WorkerOptions, config: ModelConfig, max_model_len: int | None
    ) -> int:
        model_len = config.max_position_embeddings
        one, two = (self._backend.kv_cache_bytes(n, options.block_size) for n in (1, 2))
        num_blocks = plan_kv_cache(
            available_bytes=self._available_bytes(options, model_len) - (2 * one - two),
            block_bytes=two - one,
            block_size=options.block_size,
            max_num_seqs=MAX_NUM_SEQS,
            model_len=model_len,
            max_model_len=max_model_len,
        )
        if num_blocks * options.block_size < (max_model_len or config.max_position_embeddings):
            logger.warning(
                "the KV cache is too small for the model's whole length",
                kv_capacity_tokens=num_blocks * options.block_size,
                model_len=config.max_position_embeddings,
            )
        return num_blocks

    def _available_bytes(self, options: WorkerOptions, model_len: int) -> int:
        if options.kv_cache_memory is not None:
            return int(options.kv_cache_memory)
        if self._device == CPU:
            return available_on_cpu()
        from services.worker.torch_backends import gpu_memory  # imports torch

        num_tokens = min(PROFILE_TOKENS, model_len)
        run_profile_pass(self._backend, options.block_size, num_tokens)
        # What the pass took stays reserved by torch's allocator, so it counts as used.
        free, total = gpu_memory(self._device)
        return available_on_gpu(total, total - free, options.gpu_memory_utilization)

    def _log_loaded(self, seconds: float) -> None:
        kv_bytes = self._backend.kv_cache_bytes(self.join.num_blocks, self._block_size)
        logger.info(
            "model loaded",
            model=self.join.model,
            device=self.join.device,
            dtype=self.join.dtype,
            backend=self.join.backend,
            threads=num_threads(self._cpu_threads) if self._device == CPU else None,
            num_kv_blocks=self.join.num_blocks,
            kv_cache_gib=round(kv_bytes / GIB, 2),
            seconds=round(seconds, 2),
        )


def run_profile_pass(backend: Backend[Any], block_size: int, num_tokens: int) -> None:
    """Run the largest usual pass once, on a cache made for it: one prompt of `num_tokens`."""
    num_blocks = -(-num_tokens // block_size)
    backend.allocate_kv_cache(num_blocks, block_size)
    positions = np.arange(num_tokens, dtype=np.int32)
    backend.run(
        RaggedBatch(
            token_ids=np.zeros(num_tokens, np.int32),
            positions=positions,
            cu_seqlens_q=np.array([0, num_tokens], np.int32),
            kv_lens=np.array([num_tokens], np.int32),
            block_tables=np.arange(num_blocks, dtype=np.int32)[None],
            slot_mapping=positions,
            logits_index=positions[-256:],
        )
    )
    backend.allocate_kv_cache(0, block_size)


def _check_length(max_model_len: int | None, config: ModelConfig) -> None:
    if max_model_len is not None and max_model_len > config.max_position_embeddings:
        raise ConfigError(
            f"--max-model-len {max_model_len} is more than the {config.max_position_embeddings} "
            f"tokens that this model was made for"
        )


class _Progress:
    """Says how far loading is, every few seconds; silent when it takes less."""

    def __init__(self, checkpoint: Callable[[], None]) -> None:
        self._checkpoint = checkpoint
        self._next = time.monotonic() + _PROGRESS_PERIOD_S

    def __call__(self, done: int, total: int) -> None:
        self._checkpoint()
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_PERIOD_S
            logger.info("loading weights", done=f"{100 * done // total} %")
