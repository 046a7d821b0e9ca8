"""How work on the device is captured once and replayed: the seam between the backend and CUDA.

A capture takes work that has run before (so that everything is compiled and loaded), and returns
what runs it again on the same addresses. It does not run it.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch

Replay: TypeAlias = Callable[[], None]
Capture: TypeAlias = Callable[[Replay], Replay]


def eager_capture(work: Replay) -> Replay:
    """For devices without graphs, and for tests: to replay is to do the work again."""
    return work


class CudaCapture:
    """Captures CUDA graphs that share one pool of memory, since they never run at once."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Replay) -> Replay:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            work()
        replay: Replay = graph.replay
        return replay
