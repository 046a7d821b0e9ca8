"""How kernels that treat every row alike cut a `[num_rows, width]` tensor into programs."""

from dataclasses import dataclass

import triton

# Elements of one program: enough to fill its threads with wide loads, few enough to spread rows.
_ELEMENTS = 2048


@dataclass(frozen=True, slots=True)
class RowTiles:
    """Programs of `rows` whole rows each."""

    rows: int  # per program, a power of two
    width: int  # padded to a power of two
    num_programs: int
    num_warps: int


def tile_rows(num_rows: int, width: int) -> RowTiles:
    """Several narrow rows per program, or one wide one with as many threads as it can feed."""
    padded = int(triton.next_power_of_2(width))
    rows = min(max(1, _ELEMENTS // padded), int(triton.next_power_of_2(num_rows)))
    num_warps = min(16, max(4, padded // 1024))
    return RowTiles(rows, padded, -(-num_rows // rows), num_warps)
