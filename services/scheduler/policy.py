"""What a scheduling policy decides: which tokens enter the next forward pass.

The planner asks once per pass about decodes and, in order, about each prompt that has memory for
what it is given. Everything else (order, memory, placement, failures) is the same under every
policy, so that policies can be compared on one engine.
"""

from typing import Protocol


class Policy(Protocol):
    """Composes passes; has no state, so that a pass is a function of what it is asked."""

    @property
    def decodes_first(self) -> bool:
        """Whether decodes enter a pass before prompts; else the policy is asked about them last."""
        ...

    @property
    def splits_prompts(self) -> bool:
        """Whether a prompt may take several passes; if so, the pass may be of any size."""
        ...

    def token_budget(self, wanted: int, length_limit: int, max_num_seqs: int) -> int:
        """Tokens per pass (`max_num_batched_tokens`) on one worker, >= `wanted`.

        Args:
            wanted: what was asked for, or what suits the worker's device, > 0.
            length_limit: tokens that a sequence may reach on the worker, > 0.
            max_num_seqs: sequences that run at once on the worker, > 0.
        """
        ...

    def num_decodes(self, num_ready: int, room: int, num_prompt_tokens: int) -> int:
        """How many of the decodes that are ready run in this pass, in [0, num_ready].

        Args:
            num_ready: sequences with exactly one uncomputed token.
            room: tokens that the pass has room for.
            num_prompt_tokens: in the pass already; 0 if `decodes_first`.
        """
        ...

    def num_prompt_tokens(self, num_uncomputed: int, room: int, others_wait: bool) -> int:
        """How many tokens of the next prompt run in this pass, in [0, min(num_uncomputed, room)].

        Args:
            num_uncomputed: tokens of the prompt that are left to compute, > 0.
            room: tokens that the pass still has room for, > 0.
            others_wait: other prompts are behind this one.
        """
        ...
