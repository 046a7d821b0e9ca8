"""The directory in which services of one machine put their ipc sockets."""

import os
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from common.errors import ConfigError, StartupError

# `sun_path` of a unix socket's address on Linux, without the final zero byte.
MAX_PATH_BYTES: Final = 107
# A socket file that refuses connections and is older has no process any more.
_STALE_S: Final = 5.0


def prepare_directory(socket_file: Path) -> None:
    """Make the directory for `socket_file`, private to this user, and sweep dead sockets from it.

    Raises:
        ConfigError: the path is too long, or others could put sockets of their own there.
        StartupError: it cannot be made.
    """
    path_bytes = len(os.fsencode(socket_file))
    if path_bytes > MAX_PATH_BYTES:
        raise ConfigError(
            f"{socket_file} has {path_bytes} bytes, a socket's path at most {MAX_PATH_BYTES}: "
            "choose a shorter ipc directory"
        )
    directory = socket_file.parent
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = directory.stat().st_mode
    except OSError as error:
        raise StartupError(f"cannot make {directory}: {error.strerror}") from None
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"{directory} can be written to by others (mode {mode & 0o777:o}): chmod 700 it"
        )
    for path in directory.glob(f"*{socket_file.suffix}"):
        _remove_if_stale(path)


def _remove_if_stale(path: Path) -> None:
    """Remove what a killed process left behind."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        if time.time() - path.stat().st_mtime < _STALE_S:
            return  # between bind and listen a living socket refuses, too
        probe.settimeout(0.1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
