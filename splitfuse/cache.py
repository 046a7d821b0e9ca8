"""Where this user's converted models and logs of detached servers are kept."""

import os
from pathlib import Path

CACHE_VARIABLE = "SPLITFUSE_CACHE"


def cache_dir() -> Path:
    """$SPLITFUSE_CACHE, or `splitfuse` in $XDG_CACHE_HOME, or in ~/.cache; it may not exist yet."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "splitfuse"
