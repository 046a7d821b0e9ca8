"""What of this machine servers get: the cores, and the precision that is best here."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Machine:
    """As far as a result depends on it."""

    cpu: str
    cores: tuple[int, ...]  #: that this process may use; every server inherits them
    precision: str  #: bfloat16 | float32, the faster one


def this_machine() -> Machine:
    """The machine that this process runs on."""
    cpuinfo = CPUINFO.read_text() if CPUINFO.exists() else ""
    return Machine(
        cpu=field_of(cpuinfo, "model name") or platform.processor() or platform.machine(),
        cores=tuple(sorted(os.sched_getaffinity(0))),
        precision=best_precision(field_of(cpuinfo, "flags")),
    )


def best_precision(flags: str) -> str:
    """bfloat16 where the CPU multiplies it in hardware; elsewhere it only costs conversions."""
    return "bfloat16" if "avx512_bf16" in flags.split() else "float32"


def field_of(cpuinfo: str, name: str) -> str:
    """The first processor's `name`, or an empty string."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
