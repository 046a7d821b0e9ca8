"""Keep the rows whose next token is sampled, so that the last norm and the logits see only those.

x      [num_tokens, width]
index  [num_rows] int64, rows of x; in any order, repeats allowed
out    [num_rows, width], bit for bit
"""

from torch import Tensor


def gather_rows_reference(x: Tensor, index: Tensor) -> Tensor:
    """See the module docstring."""
    return x.index_select(0, index)
