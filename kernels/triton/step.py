"""A batch as the kernels see it: tensors on the device, padded to the size of a graph."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from kernels.ragged_batch import RaggedBatch
from kernels.triton.attention_plan import (
    ITEM_FIELDS,
    MERGE_FIELDS,
    AttentionPlan,
    Tiling,
    plan_attention,
)
from kernels.triton.input_buffer import InputBuffer, Section
from kernels.triton.sizes import GraphSize

PlanKey: TypeAlias = tuple[Tiling, int | None]  # and the sliding window


@dataclass(frozen=True, slots=True)
class Step:
    """All tensors are int32; padding tokens are row 0, position 0, in the scratch slot."""

    num_tokens: int  # with padding
    num_logits_rows: int
    decode_only: bool
    token_ids: Tensor  # [num_tokens]
    positions: Tensor  # [num_tokens]
    slot_mapping: Tensor  # [num_tokens]
    block_tables: Tensor  # [num_seqs * max_num_blocks]
    logits_index: Tensor  # [num_logits_rows]
    items: Mapping[PlanKey, Tensor]  # [num_items, ITEM_FIELDS], with padding
    merges: Mapping[PlanKey, Tensor]  # [num_merges, MERGE_FIELDS], with padding


def plan_step(batch: RaggedBatch, keys: tuple[PlanKey, ...]) -> dict[PlanKey, AttentionPlan]:
    """One plan for each way in which layers attend."""
    return {key: plan_attention(batch, tiling=key[0], sliding_window=key[1]) for key in keys}


def fits(size: GraphSize, plans: Mapping[PlanKey, AttentionPlan]) -> bool:
    """Whether the graph of this size has room for the plans."""
    return all(
        len(plan.items) <= _room_for_items(size, tiling)
        and len(plan.merges) <= _room_for_merges(size, tiling)
        for (tiling, _), plan in plans.items()
    )


def load_step(
    batch: RaggedBatch,
    plans: Mapping[PlanKey, AttentionPlan],
    size: GraphSize | None,
    scratch_slot: int,
    inputs: InputBuffer,
) -> Step:
    """Move a batch to the device.

    Args:
        size: what to pad to, which must fit; None: as it is.
    """
    num_tokens = batch.num_tokens if size is None else size.num_tokens
    sections = [
        Section(batch.token_ids, num_tokens),
        Section(batch.positions, num_tokens),
        Section(batch.slot_mapping, num_tokens, fill=scratch_slot),
    ]
    for (tiling, _), plan in plans.items():
        num_items = len(plan.items) if size is None else _room_for_items(size, tiling)
        num_merges = len(plan.merges) if size is None else _room_for_merges(size, tiling)
        sections.append(Section(plan.items, num_items * ITEM_FIELDS))
        sections.append(Section(plan.merges, num_merges * MERGE_FIELDS))
    # These two come last, since their lengths are free: their addresses are not captured, or
    # follow from what comes before.
    sections.append(Section(batch.block_tables, batch.block_tables.size))
    sections.append(Section(batch.logits_index, len(batch.logits_index)))
    token_ids, positions, slot_mapping, *planned, tables, logits_index = inputs.write(sections)
    return Step(
        num_tokens=num_tokens,
        num_logits_rows=len(batch.logits_index),
        decode_only=batch.num_tokens == batch.num_seqs if size is None else size.decode_only,
        token_ids=token_ids,
        positions=positions,
        slot_mapping=slot_mapping,
        block_tables=tables,
        logits_index=logits_index,
        items={
            key: rows.view(-1, ITEM_FIELDS) for key, rows in zip(plans, planned[::2], strict=True)
        },
        merges={
            key: rows.view(-1, MERGE_FIELDS) for key, rows in zip(plans, planned[1::2], strict=True)
        },
    )


def _room_for_items(size: GraphSize, tiling: Tiling) -> int:
    return tiling.max_num_tiles(size.num_tokens, size.max_num_seqs) + tiling.max_num_splits


def _room_for_merges(size: GraphSize, tiling: Tiling) -> int:
    return tiling.max_num_splits if size.is_split else 0
