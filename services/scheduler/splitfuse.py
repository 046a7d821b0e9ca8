"""Dynamic SplitFuse: which tokens enter the next forward pass.

A pass costs what its number of tokens costs. Decodes go first, one token each, so no running
stream stalls behind a prompt; prompts fill the rest, in order, and are cut where the pass is full.
Two ways to cut:

    greedy     every pass is filled to the budget; a prompt's last chunk is what happens to be left
    balanced   while other prompts wait behind, the same; the last one is cut into passes of even
               size, since time over tokens is concave: two equal passes cost less than a
               full one and a small one
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

TILE = 16  # tokens; even chunks are multiples of it, a size that matrix units like
Partition: TypeAlias = Literal["greedy", "balanced"]


@dataclass(frozen=True, slots=True)
class SplitFuse:
    """The policy of the paper (DeepSpeed-FastGen, section 3); see the module docstring."""

    partition: Partition = "balanced"

    @property
    def decodes_first(self) -> bool:
        return True

    @property
    def splits_prompts(self) -> bool:
        return True

    def token_budget(self, wanted: int, length_limit: int, max_num_seqs: int) -> int:
        """What was asked for: prompts can be cut to any size."""
        return wanted

    def num_decodes(self, num_ready: int, room: int, num_prompt_tokens: int) -> int:
        """All that fit. Workers run no more sequences than the budget, so that is all."""
        return min(num_ready, room)

    def num_prompt_tokens(self, num_uncomputed: int, room: int, others_wait: bool) -> int:
        """Fill the room, unless this is the last prompt and an even cut leaves some."""
        if self.partition == "greedy" or others_wait:
            return min(num_uncomputed, room)
        return even_chunk(num_uncomputed, room)


def even_chunk(num_uncomputed: int, room: int) -> int:
    """The first chunk of a prompt that is cut into the fewest passes of even size.

    The rest R is k = ceil(R / TILE) tiles, which take n = ceil(k / floor(room / TILE)) passes; this
    one takes floor(k / n) tiles. Asked again for each pass, n falls by one each time, the smaller
    chunks come first, and over the whole prompt sizes differ by at most one tile.
    Example: 1,500 tokens with room for 250 run as 208, 208, 208, 208, 224, 224, 220.

    Args:
        num_uncomputed: tokens left of the prompt, > 0.
        room: tokens that the pass has room for, > 0; less than a tile is filled up.

    Returns:
        Tokens of the first chunk, in [1, min(num_uncomputed, room)].
    """
    tiles_per_pass = room // TILE
    if num_uncomputed <= room or not tiles_per_pass:
        return min(num_uncomputed, room)
    num_tiles = -(-num_uncomputed // TILE)
    num_passes = -(-num_tiles // tiles_per_pass)
    return num_tiles // num_passes * TILE
