"""Keep the rows whose next token is sampled.

    x      [num_tokens, width]
    index  [num_rows] int32, rows of x; in any order, repeats allowed
    out    [num_rows, width], bit for bit

The same copy as an embedding's, from a table that happens to be activations.
"""

from torch import Tensor

from kernels.triton.embed import embed


def gather_rows(x: Tensor, index: Tensor, out: Tensor) -> None:
    """Write `out`; see the module docstring for shapes."""
    embed(index, x, out)
