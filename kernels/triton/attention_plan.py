"""Which program of `paged_attention` reads which keys for which queries: made on the host.

A tile is a few neighbouring queries of one sequence. Its keys are read by one program, or split
among several, if they are so many that the device would wait for them at the end of the launch.
Each program has one item, a row of integers that spares it every search:

    0  row of the tile's first query             4  end of the keys that this item reads
    1  queries of the tile; 0: nothing to do     5  where the sequence's block table begins
    2  position of the first query               6  first row of its partial result; -1: not split
    3  first key that this item reads            7  unused

The programs of a split tile leave partial results, one row per query, split after split. A merge
joins them: (row of the first query, queries, first partial row, splits).

How much a program reads follows from all the work of the batch, so there are never more than
`num_tiles + max_num_splits` items, however long the sequences are: a captured graph has room
for any batch of its size.
"""

from dataclasses import dataclass

import numpy as np

from kernels.ragged_batch import Int32Array, RaggedBatch

ITEM_FIELDS = 8
MERGE_FIELDS = 4
# A program that reads fewer tiles of keys than this costs more to start and merge than it saves.
_MIN_KEY_TILES = 4


@dataclass(frozen=True, slots=True)
class Tiling:
    """How queries and keys are cut; all powers of two but `max_num_splits`.

    Invariant: decode_queries <= chunk_queries.
    """

    decode_queries: int  # per tile, in sequences that bring no more than these
    chunk_queries: int  # per tile, in all others
    keys: int  # per tile
    max_num_splits: int  # items beside one per tile that fill the device

    def max_num_tiles(self, num_tokens: int, num_seqs: int) -> int:
        """Tiles of queries that a batch can have at most."""
        return min(num_tokens, num_seqs + num_tokens // self.chunk_queries)

    def max_num_partial_rows(self, decode_only: bool) -> int:
        """Rows that partial results can take at most; see `plan_attention`."""
        return 2 * self.max_num_splits * (1 if decode_only else self.chunk_queries)


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """The work of one launch."""

    items: Int32Array  # [num_items, ITEM_FIELDS], those with most keys first
    merges: Int32Array  # [num_merges, MERGE_FIELDS]


def plan_attention(
    batch: RaggedBatch, tiling: Tiling, sliding_window: int | None = None
) -> AttentionPlan:
    """Cut a batch into items.

    With w key tiles in all, an item reads at most ceil(w / max_num_splits) of them. A tile that
    is split has more than that, hence fewer than `max_num_splits` tiles are split, into fewer than
    `2 * max_num_splits` items.
    """
    tiles = _cut_queries(batch, tiling, sliding_window)
    key_tiles = -(-(tiles.end - tiles.begin) // tiling.keys)
    longest = max(_MIN_KEY_TILES, -(-int(key_tiles.sum()) // tiling.max_num_splits))
    splits = -(-key_tiles // longest)
    share = -(-key_tiles // splits)
    splits = -(-key_tiles // share)
    first_partial = _first_partials(tiles.queries, splits)
    split = np.flatnonzero(splits > 1)
    merges = [tiles.row, tiles.queries, first_partial, splits]
    return AttentionPlan(
        _make_items(tiles, splits, share * tiling.keys, first_partial),
        np.stack(merges, axis=1)[split].astype(np.int32),
    )


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Of each tile of queries; all int64 [num_tiles]."""

    row: np.ndarray
    queries: np.ndarray
    position: np.ndarray  # of its first query
    begin: np.ndarray  # first key that a query sees, rounded down to a tile of keys
    end: np.ndarray  # behind the last key that a query sees
    table: np.ndarray


def _cut_queries(batch: RaggedBatch, tiling: Tiling, sliding_window: int | None) -> _Tiles:
    starts = batch.cu_seqlens_q[:-1].astype(np.int64)
    counts = np.diff(batch.cu_seqlens_q).astype(np.int64)
    is_chunk = counts > tiling.decode_queries
    per_tile = np.where(is_chunk, tiling.chunk_queries, tiling.decode_queries)
    num_tiles = -(-counts // per_tile)
    owner = np.arange(batch.num_seqs).repeat(num_tiles)
    number = np.arange(len(owner)) - (num_tiles.cumsum() - num_tiles)[owner]
    first = number * per_tile[owner]
    queries = np.minimum(per_tile[owner], counts[owner] - first)
    position = batch.kv_lens[owner] - counts[owner] + first
    begin = np.zeros_like(position)
    if sliding_window is not None:
        begin = np.maximum(position - sliding_window + 1, 0) // tiling.keys * tiling.keys
    return _Tiles(
        row=starts[owner] + first,
        queries=queries,
        position=position,
        begin=begin,
        end=position + queries,
        table=owner * batch.block_tables.shape[1],
    )


def _first_partials(queries: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Where each tile's partial results begin; -1 for tiles that are not split."""
    rows = np.where(splits > 1, queries * splits, 0)
    return np.where(splits > 1, rows.cumsum() - rows, -1)


def _make_items(
    tiles: _Tiles, splits: np.ndarray, keys_per_item: np.ndarray, first_partial: np.ndarray
) -> Int32Array:
    tile = np.arange(len(splits)).repeat(splits)
    number = np.arange(len(tile)) - (splits.cumsum() - splits)[tile]
    begin = tiles.begin[tile] + number * keys_per_item[tile]
    items = np.zeros((len(tile), ITEM_FIELDS), np.int32)
    items[:, 0] = tiles.row[tile]
    items[:, 1] = tiles.queries[tile]
    items[:, 2] = tiles.position[tile]
    items[:, 3] = begin
    items[:, 4] = np.minimum(begin + keys_per_item[tile], tiles.end[tile])
    items[:, 5] = tiles.table[tile]
    partial = first_partial[tile]
    items[:, 6] = np.where(partial < 0, -1, partial + number * tiles.queries[tile])
    return items[np.argsort(begin - items[:, 4], kind="stable")]
