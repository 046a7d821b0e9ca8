"""How many KV blocks a worker has: as many as fit the memory it may use.

`--kv-cache-memory` says it in bytes. Otherwise a GPU gives `--gpu-memory-utilization` of its total
less what is in use once a forward pass was run; a CPU gives a share of what is free at that
moment, up to a cap, since a laptop has other things to do.
"""

from pathlib import Path

import psutil

from common.errors import StartupError

GIB = 1024**3

# Of the memory that is free after the weights are loaded; the rest is for activations and others.
CPU_MEMORY_SHARE = 0.5
CPU_MEMORY_CAP_BYTES = 4 * GIB

_CGROUP = Path("/sys/fs/cgroup")


def plan_kv_cache(
    available_bytes: int,
    block_bytes: int,
    block_size: int,
    max_num_seqs: int,
    model_len: int,
    max_model_len: int | None,
) -> int:
    """Divide the memory into blocks, no more than all sequences together could fill.

    Args:
        available_bytes: for the whole cache; below 0 if not even what it needs without blocks fits.
        block_bytes: of one block, all layers, K and V.
        model_len: tokens that the model was made for.
        max_model_len: as asked for, so it must fit; None: a cache smaller than `model_len` will do.

    Raises:
        StartupError: not even one sequence of `max_model_len` fits, or not one block does. The
            message names what is needed, what is there, and the largest length that fits.
    """
    available_bytes = max(available_bytes, 0)
    num_blocks = available_bytes // block_bytes
    fitting_len = num_blocks * block_size
    wanted_len = model_len if max_model_len is None else max_model_len
    if fitting_len < (1 if max_model_len is None else wanted_len):
        needed_bytes = _blocks_for(wanted_len, block_size) * block_bytes
        raise StartupError(
            f"one sequence of {wanted_len} tokens needs {needed_bytes / GIB:.2f} GiB of KV cache, "
            f"more than the {available_bytes / GIB:.2f} GiB available; the largest length that "
            f"fits is {fitting_len}: lower --max-model-len, or raise --kv-cache-memory or (on a "
            f"GPU) --gpu-memory-utilization"
        )
    return min(num_blocks, max_num_seqs * _blocks_for(wanted_len, block_size))


def _blocks_for(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)


def available_on_cpu() -> int:
    """Bytes for the cache on a CPU: a share of what is free, up to the cap."""
    free = min(psutil.virtual_memory().available, _free_in_cgroup())
    return min(int(free * CPU_MEMORY_SHARE), CPU_MEMORY_CAP_BYTES)


def _free_in_cgroup() -> float:
    """What a container's memory limit leaves; infinite without one."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        return float("inf") if limit == "max" else max(int(limit) - used, 0)
    except (OSError, ValueError):  # no cgroup v2 here
        return float("inf")


def available_on_gpu(total_bytes: int, used_bytes: int, utilization: float) -> int:
    """Bytes for the cache on a GPU.

    Args:
        used_bytes: of weights, of the largest forward pass, and of other processes.
        utilization: share of the total for all of that and the cache together.
    """
    return max(int(total_bytes * utilization) - used_bytes, 0)
