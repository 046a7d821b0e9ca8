"""What a family makes of a config: the program, and where its weights come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kernels.program import Program


@dataclass(frozen=True, slots=True)
class Part:
    """A checkpoint tensor that fills `num_rows` rows of a weight.

    A weight of one dimension counts elements; one of three, `[experts, rows, width]`, the rows of
    all experts, one expert after the other.
    """

    tensor: str
    num_rows: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model ready to be loaded.

    `sources` gives, for each weight of the program, the parts whose rows are stacked to make it; a
    part alone has the weight's whole shape. `alternatives` gives other parts for some of them, read
    where the checkpoint has those. `ignored` are tensors that it may carry and nobody needs.
    """

    program: Program
    sources: Mapping[str, tuple[Part, ...]]
    ignored: frozenset[str] = frozenset()
    alternatives: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
