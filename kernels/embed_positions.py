"""Add the learned embedding of each token's position.

x          [num_tokens, width], already written; added to in place, rounded once to its dtype
positions  [num_tokens] int64
weight     [num_rows, width], same dtype
offset     rows before that of position 0
out        x[t] += weight[positions[t] + offset]

Whoever declares the program promises that `position + offset < num_rows` for every position up to
the model's length; a backend must still not read outside the table.
"""

from torch import Tensor


def embed_positions_reference(x: Tensor, positions: Tensor, weight: Tensor, offset: int) -> Tensor:
    """See the module docstring. Returns `x`."""
    return x.add_(weight.index_select(0, positions + offset))
