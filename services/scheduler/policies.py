"""The scheduling policies by name."""

from typing import Literal, TypeAlias

from services.scheduler.orca import Orca
from services.scheduler.policy import Policy
from services.scheduler.prefill_first import PrefillFirst
from services.scheduler.splitfuse import Partition, SplitFuse

PolicyName: TypeAlias = Literal["splitfuse", "prefill-first", "orca"]


def make_policy(name: PolicyName, partition: Partition | None = None) -> Policy:
    """The policy of that name.

    Args:
        name: as in `--scheduling-policy`.
        partition: how SplitFuse cuts prompts; None: evenly.

    Raises:
        ValueError: a partition for a policy that does not cut prompts.
    """
    if name == "splitfuse":
        return SplitFuse(partition or "balanced")
    if partition is not None:
        raise ValueError(f"{name} does not cut prompts: it has no {partition} partition")
    return PrefillFirst() if name == "prefill-first" else Orca()
