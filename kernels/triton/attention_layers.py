"""All attention of one model: which shapes its layers have, which plans and what room they need."""

import torch
from torch import Tensor

from kernels.program import PagedAttention, Program
from kernels.triton.attention_plan import Tiling
from kernels.triton.paged_attention import (
    AttentionShape,
    Partials,
    TileConfig,
    make_partials,
    make_tiling,
    paged_attention,
    tile_config,
)
from kernels.triton.step import PlanKey, Step

# Programs per multiprocessor that keep enough reads under way to fill the memory bus.
_PROGRAMS_PER_PROCESSOR = 2
# Where there are no multiprocessors (the interpreter), few, so that long contexts are split.
_PROGRAMS_ELSEWHERE = 8


class AttentionLayers:
    """Layers of one shape share a plan, and all layers of equal heads share partial results."""

    def __init__(self, program: Program, like: Tensor) -> None:
        """`like`: a tensor of the model's dtype and device."""
        num_programs = _programs_that_fill(like.device)
        self._shapes: dict[int, AttentionShape] = {}
        self._configs: dict[int, TileConfig] = {}
        self._tilings: dict[int, Tiling] = {}
        for op in program.ops:
            if isinstance(op, PagedAttention):
                shape = _shape_of(op)
                config = tile_config(shape.dim_pad, like.element_size())
                self._shapes[op.layer] = shape
                self._configs[op.layer] = config
                self._tilings[op.layer] = make_tiling(shape, config, num_programs)
        self._partials = self._make_partials(like.device)

    @property
    def plan_keys(self) -> tuple[PlanKey, ...]:
        """The plans that a step needs, each once."""
        keys = (self._plan_key(layer) for layer in self._shapes)
        return tuple(dict.fromkeys(keys))

    def run(
        self, layer: int, q: Tensor, k_cache: Tensor, v_cache: Tensor, out: Tensor, step: Step
    ) -> None:
        """Attend; see `kernels.triton.paged_attention` for shapes."""
        shape, key = self._shapes[layer], self._plan_key(layer)
        paged_attention(
            q,
            k_cache,
            v_cache,
            step.block_tables,
            step.items[key],
            step.merges[key],
            self._partials[shape.num_heads, shape.head_dim],
            out,
            shape,
            self._tilings[layer],
            self._configs[layer],
            step.decode_only,
        )

    def _plan_key(self, layer: int) -> PlanKey:
        return self._tilings[layer], self._shapes[layer].sliding_window

    def _make_partials(self, device: torch.device) -> dict[tuple[int, int], Partials]:
        """By heads and dimensions, with room for whatever a layer of them may leave."""
        rows: dict[tuple[int, int], int] = {}
        for layer, shape in self._shapes.items():
            key = shape.num_heads, shape.head_dim
            num_rows = self._tilings[layer].max_num_partial_rows(decode_only=False)
            rows[key] = max(rows.get(key, 0), num_rows)
        return {key: make_partials(num_rows, *key, device) for key, num_rows in rows.items()}


def _shape_of(op: PagedAttention) -> AttentionShape:
    return AttentionShape(
        op.num_heads, op.num_kv_heads, op.head_dim, op.scale, op.sliding_window, op.soft_cap
    )


def _programs_that_fill(device: torch.device) -> int:
    if device.type != "cuda":
        return _PROGRAMS_ELSEWHERE
    processors: int = torch.cuda.get_device_properties(device).multi_processor_count
    return _PROGRAMS_PER_PROCESSOR * processors
