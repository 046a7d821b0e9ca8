"""Of which make the device is, as far as the system tells."""

import platform
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


def device_name(device: str) -> str:
    """The make of a device as workers announce it ("cpu", "cuda:0").

    Example: "AMD EPYC, cpu family 26, model 2". A virtual machine may hide more of the name than
    that, so two makes can share one.
    """
    if device.startswith("cuda"):
        import torch  # a worker that computes on a CPU may do without

        return torch.cuda.get_device_name(device)
    try:
        first = _CPU_INFO.read_text().partition("\n\n")[0]
    except OSError:  # not on macOS
        return platform.processor() or platform.machine()
    pairs = (line.partition(":") for line in first.splitlines())
    known = {name.strip(): value.strip() for name, _, value in pairs}
    parts = [f"{name} {known[name]}" for name in ("cpu family", "model") if name in known]
    return ", ".join([known.get("model name", platform.machine()), *parts])
