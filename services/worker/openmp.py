"""How OpenMP's threads wait for each other; torch computes with them on a CPU."""

import os
from typing import Final

# How often an OpenMP thread looks whether the others are done before it sleeps. With the default,
# 300 times as often, threads that wait keep the cores from those they wait for whenever another
# process computes too: on 2 cores shared with other work a decode step of SmolLM2-135M took 0.9 s
# instead of 0.07 s. On 2 cores of its own the shorter wait costs 13 to 26 %.
SPIN_COUNT: Final = "1000"


def limit_spinning() -> None:
    """Unless the environment says how to wait; to be called before torch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
