"""What a forward pass costs: milliseconds from what is in it, learned from the passes that ran.

A pass reads all weights once, multiplies them with every token, reads the KV of each sequence and
compares every token with its context. So its time is close to linear in the features of
`StepShape`, with coefficients that belong to one worker: its device, backend and model.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepShape:
    """What is in a pass, as far as its time depends on it. All counts over the whole pass."""

    num_tokens: int  # that enter the pass
    num_context_tokens: (
        int  # KV read: over chunks, the tokens of the sequence up to the chunk's end
    )
    num_attended_tokens: int  # over tokens, how many tokens each one attends to, itself included
    num_sequences: int  # chunks
    num_logits: int  # rows of logits made, one per chunk that samples


class CostModel:
    """Step time of one worker as a function of the step's shape.

    Fitted by recursive least squares with forgetting, one update per step that ran.
    """

    def predict_ms(self, shape: StepShape) -> float:
        """Milliseconds that a pass of this shape is expected to take, > 0."""
        raise NotImplementedError

    def observe(self, shape: StepShape, step_ms: float) -> None:
        """Learn from a pass that took `step_ms` milliseconds on its device."""
        raise NotImplementedError
