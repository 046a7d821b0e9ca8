"""What a family makes of a config: the program, and where its weights come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kernels.program import Program


@dataclass(frozen=True, slots=True)
class Part:
    """A checkpoint tensor of `num_rows` rows (elements, if it has one dimension)."""

    tensor: str
    num_rows: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model ready to be loaded.

    `sources` gives, for each weight of the program, the parts whose rows are stacked to make it.
    `ignored` are tensors that a checkpoint may carry and nobody needs.
    """

    program: Program
    sources: Mapping[str, tuple[Part, ...]]
    ignored: frozenset[str] = field(default_factory=frozenset)
