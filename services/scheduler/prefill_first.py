"""Prefill-first: whole prompts stop generation, as in vLLM when the FastGen paper was written.

While a waiting prompt can start, the pass holds whole prompts alone, as many as the budget takes,
and every running stream waits. Only when none can start does a pass hold all decodes.
That is the paper's baseline (arXiv 2401.08671, figure 1; vLLM 0.2, `Scheduler._schedule`).

No stream waits for ever: each pass of prompts starts at least one sequence, and at most
`max_num_seqs` of them run.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrefillFirst:
    """The `Policy` of the module docstring."""

    @property
    def decodes_first(self) -> bool:
        return False

    @property
    def splits_prompts(self) -> bool:
        return False

    def token_budget(self, wanted: int, length_limit: int, max_num_seqs: int) -> int:
        """What was asked for, but never less than the longest prompt, which has to fit whole."""
        return max(wanted, length_limit)

    def num_decodes(self, num_ready: int, room: int, num_prompt_tokens: int) -> int:
        """All of them, in a pass without prompts."""
        return 0 if num_prompt_tokens else min(num_ready, room)

    def num_prompt_tokens(self, num_uncomputed: int, room: int, others_wait: bool) -> int:
        """All or nothing."""
        return num_uncomputed if num_uncomputed <= room else 0
