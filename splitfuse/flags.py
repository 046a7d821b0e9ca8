"""Options as command-line flags. Imports nothing of ours: it also runs in users' processes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def to_flags(options: Mapping[str, Any]) -> list[str]:
    """`{"max_num_seqs": 8}` → `["--max-num-seqs=8"]`; an option that is None is left out."""
    flags = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        match value:
            case None:
                pass
            case bool():
                flags.append(f"--{flag}" if value else f"--no-{flag}")
            case list() | tuple():
                flags.append(f"--{flag}={','.join(str(item) for item in value)}")
            case Path():
                flags.append(f"--{flag}={value.absolute()}")
            case _:
                flags.append(f"--{flag}={value}")
    return flags
