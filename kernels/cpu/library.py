"""The CPU library as Python sees it: the structs of its headers, and typed functions."""

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, Final, Self

import numpy as np

from kernels.cpu.errors import UnsupportedInstructionSet
from kernels.cpu.instruction_set import (
    INSTRUCTION_SETS,
    InstructionSet,
    instruction_sets_of_this_machine,
)
from kernels.cpu.library_cache import (
    LibraryCache,
    default_directory,
    library_target,
    probe_target,
)
from kernels.ragged_batch import RaggedBatch


class Buffer(ctypes.Structure):
    """`sf_buffer`."""

    _fields_: ClassVar = [
        ("width", c_int32),
        ("dtype", c_int32),
        ("by_logits_rows", c_int32),
        ("stride", c_int32),
        ("data", c_void_p),
    ]


class Op(ctypes.Structure):
    """`sf_op`."""

    _fields_: ClassVar = [
        ("kind", c_int32),
        ("input", c_int32),
        ("output", c_int32),
        ("residual", c_int32),
        ("activation", c_int32),
        ("is_gated", c_int32),
        ("norm", c_int32),
        ("layer", c_int32),
        ("in_width", c_int32),
        ("out_width", c_int32),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("num_frequencies", c_int32),
        ("sliding_window", c_int32),
        ("num_rows", c_int32),
        ("offset", c_int32),
        ("num_experts", c_int32),
        ("top_k", c_int32),
        ("inner_width", c_int32),
        ("eps", c_float),
        ("scale", c_float),
        ("soft_cap", c_float),
        ("rope_scale", c_float),
        ("table", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("frequencies", c_void_p),
    ]


class Batch(ctypes.Structure):
    """`sf_batch`."""

    _fields_: ClassVar = [
        ("num_tokens", c_int32),
        ("num_seqs", c_int32),
        ("max_num_blocks", c_int32),
        ("num_logits_rows", c_int32),
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("cu_seqlens_q", c_void_p),
        ("kv_lens", c_void_p),
        ("block_tables", c_void_p),
        ("slot_mapping", c_void_p),
        ("logits_index", c_void_p),
    ]
    _ARRAYS: ClassVar = [field[0] for field in _fields_ if field[1] is c_void_p]

    @classmethod
    def of(cls, batch: RaggedBatch) -> Self:
        """A batch on copies of the arrays, which live as long as it does.

        They share one array: to ask one for its address takes longer than to copy it.
        """
        counts = (batch.num_tokens, batch.num_seqs, batch.block_tables.shape[1])
        arrays = [getattr(batch, name) for name in cls._ARRAYS]
        copies = np.concatenate([array.ravel() for array in arrays])
        assert copies.dtype == np.int32
        begins = accumulate((array.nbytes for array in arrays[:-1]), initial=copies.ctypes.data)
        made = cls(*counts, len(batch.logits_index), *begins)
        made._copies = copies
        return made


class Randomness(ctypes.Structure):
    """`sf_randomness` of `src/sampling.h`."""

    _fields_: ClassVar = [
        ("temperature", c_void_p),
        ("top_k", c_void_p),
        ("top_p", c_void_p),
        ("min_p", c_void_p),
        ("seeds", c_void_p),
        ("positions", c_void_p),
    ]


# result, arguments; models, samplers and pools are opaque pointers.
_SIGNATURES: Final[dict[str, tuple[Any, list[Any]]]] = {
    "sf_last_error": (c_char_p, []),
    "sf_create": (
        c_void_p,
        [POINTER(Op), c_int32, POINTER(Buffer), c_int32, c_int32, c_int32, c_int32, c_int32],
    ),
    "sf_destroy": (None, [c_void_p]),
    "sf_threads": (c_void_p, [c_void_p]),
    "sf_set_weight": (c_int32, [c_void_p, c_int32, c_int32, c_void_p]),
    "sf_kv_cache_bytes": (c_int64, [c_void_p, c_int64, c_int32]),
    "sf_allocate_kv_cache": (c_int32, [c_void_p, c_int64, c_int32]),
    "sf_populate_kv_cache": (c_int32, [c_void_p, c_int32, c_int64, c_int64]),
    "sf_step": (c_int32, [c_void_p, POINTER(Batch), c_void_p]),
    "sf_create_sampler": (c_void_p, [c_void_p, c_int32]),
    "sf_destroy_sampler": (None, [c_void_p]),
    "sf_argmax": (None, [c_void_p, c_void_p, c_int32, c_void_p, c_void_p]),
    "sf_sample": (
        c_int32,
        [c_void_p, c_void_p, c_int32, c_void_p, c_int32, POINTER(Randomness), c_void_p],
    ),
    "pool_create": (c_void_p, [c_int, c_int]),
    "pool_destroy": (None, [c_void_p]),
}


@dataclass(frozen=True, slots=True)
class CpuLibrary:
    """A loaded library; calls release the interpreter's lock."""

    instruction_set: InstructionSet
    functions: ctypes.CDLL

    def last_error(self) -> str:
        """Text of the last error in this thread; "" if there was none."""
        text: bytes = self.functions.sf_last_error()
        return text.decode(errors="replace")


def default_cache() -> LibraryCache:
    """The user's own, without prebuilt libraries."""
    return LibraryCache(default_directory())


def supported_instruction_sets(cache: LibraryCache | None = None) -> tuple[InstructionSet, ...]:
    """Those that this CPU and its system can run, best first.

    Raises:
        CpuLibraryError: the probe can neither be found nor compiled.
    """
    known = instruction_sets_of_this_machine()
    if len(known) == 1:
        return known
    level: int = (cache or default_cache()).open(probe_target()).sf_probe()
    return INSTRUCTION_SETS[-1 - level :]


def load_library(
    instruction_set: InstructionSet | None = None, cache: LibraryCache | None = None
) -> CpuLibrary:
    """Load the library, compiled now if it has to be, which takes seconds.

    Args:
        instruction_set: None: the best that this CPU can run.
        cache: where compiled libraries are; default: of the user.

    Raises:
        UnsupportedInstructionSet: this CPU cannot run the one asked for.
        CpuLibraryError: it can neither be found nor compiled.
    """
    cache = cache or default_cache()
    supported = supported_instruction_sets(cache)
    chosen = instruction_set or supported[0]
    if chosen not in supported:
        raise UnsupportedInstructionSet(
            f"this CPU cannot run {chosen}; it can run {', '.join(supported)}"
        )
    functions = cache.open(library_target(chosen))
    _declare(functions)
    return CpuLibrary(chosen, functions)


def _declare(functions: ctypes.CDLL) -> None:
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(functions, name)
        function.restype, function.argtypes = result, arguments
