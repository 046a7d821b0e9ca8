"""Orca: iteration-level batching; sequences join and leave with every pass, prompts are not split.

Every pass holds all decodes, and whole prompts join them as they start (Yu et al., "Orca", OSDI
2022, section 3). Nothing stops generation, but a pass takes as long as the prompts in it are.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Orca:
    """The `Policy` of the module docstring."""

    @property
    def decodes_first(self) -> bool:
        return True

    @property
    def splits_prompts(self) -> bool:
        return False

    def token_budget(self, wanted: int, length_limit: int, max_num_seqs: int) -> int:
        """What was asked for, but room for all decodes and the longest prompt beside them."""
        return max(wanted, length_limit + max_num_seqs)

    def num_decodes(self, num_ready: int, room: int, num_prompt_tokens: int) -> int:
        """All that fit."""
        return min(num_ready, room)

    def num_prompt_tokens(self, num_uncomputed: int, room: int, others_wait: bool) -> int:
        """All or nothing."""
        return num_uncomputed if num_uncomputed <= room else 0
