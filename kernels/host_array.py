"""Arrays on the host, and the dtypes that models come in.

numpy has no bfloat16; ml_dtypes adds one that converts to and from the others like any dtype does.
"""

from typing import Any, Final, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

HostArray: TypeAlias = NDArray[Any]
Float32Array: TypeAlias = NDArray[np.float32]
Int64Array: TypeAlias = NDArray[np.int64]
Dtype: TypeAlias = np.dtype[Any]

FLOAT32: Final[Dtype] = np.dtype(np.float32)
FLOAT16: Final[Dtype] = np.dtype(np.float16)
BFLOAT16: Final[Dtype] = np.dtype(ml_dtypes.bfloat16)
