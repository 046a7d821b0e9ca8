"""Known devices, as their vendors' datasheets describe them."""

from dataclasses import dataclass

from common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Gpu:
    """Peak numbers of one device; what a kernel reaches of them is an assumption elsewhere."""

    name: str
    memory_gb: float  #: 1e9 bytes
    memory_gb_per_s: float
    tflops: float  #: dense matrix products of 16-bit floats, no sparsity
    link_gb_per_s: float  #: to the other devices of the machine, one direction


# SXM parts talk over NVLink, MI300X over Infinity Fabric, the others over PCIe 4.0 x16.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100-40G", 40, 1555, 312, 300),
        Gpu("A100-80G", 80, 2039, 312, 300),
        Gpu("H100", 80, 3350, 989, 450),
        Gpu("H200", 141, 4800, 989, 450),
        Gpu("MI300X", 192, 5300, 1307, 448),
        Gpu("L4", 24, 300, 121, 32),
        Gpu("L40S", 48, 864, 362, 32),
        Gpu("A6000", 48, 768, 155, 32),
        Gpu("RTX4090", 24, 1008, 165, 32),
    )
}


def gpu_named(name: str) -> Gpu:
    """A device of the table; upper and lower case are the same.

    Raises:
        ConfigError: it is not in the table; lists those that are.
    """
    for gpu in GPUS.values():
        if gpu.name.lower() == name.lower():
            return gpu
    raise ConfigError(f"GPU {name!r} is not known; known are {', '.join(GPUS)}")
