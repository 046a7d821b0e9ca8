"""Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1), on tensors of the CPU.

The interpreter keeps bfloat16 as the bits of an integer: loads, stores and casts are right, but
arithmetic on it is silently wrong. So kernels that would multiply bfloat16 take a constexpr UPCAST,
which makes them compute in float32 from the load on.
"""

import torch
import triton


def interpreted() -> bool:
    """Decided when triton was imported: a kernel cannot change sides later."""
    return bool(triton.knobs.runtime.interpret)


def must_upcast(dtype: torch.dtype) -> bool:
    """Whether tiles of `dtype` have to become float32 before they are multiplied."""
    return interpreted() and dtype == torch.bfloat16
