"""CURVE keys of the mesh: one key pair that every process of it shares.

A tcp link is encrypted with it, and both ends prove that they have it. Who holds the secret file
belongs to the mesh; who does not cannot connect, read or pretend to be a peer.
"""

import os
import tempfile
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import zmq

from common.discovery import split_tcp
from common.errors import ConfigError

PUBLIC_FILE: Final = "mesh.key"
SECRET_FILE: Final = "mesh.key_secret"  # noqa: S105  a file name
_KEY_CHARS: Final = 40  # 32 bytes in Z85


@dataclass(frozen=True, slots=True)
class MeshKeys:
    """A CURVE key pair, each 40 bytes of Z85."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return "MeshKeys(...)"


def generate_keys(directory: Path) -> None:
    """Make the mesh's key pair in `directory` (made if missing), readable by its owner only.

    Raises:
        ConfigError: there is a key already, or the directory cannot be written to.
    """
    public, secret = zmq.curve_keypair()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (directory / SECRET_FILE, directory / PUBLIC_FILE):
            if path.exists():  # or half of a new pair would be left beside half of an old one
                raise ConfigError(f"{path} exists: keys are not replaced")
        _write_new(directory / SECRET_FILE, secret)
        _write_new(directory / PUBLIC_FILE, public)
    except FileExistsError as error:
        raise ConfigError(f"{error.filename2 or directory} exists: keys are not replaced") from None
    except OSError as error:
        raise ConfigError(f"cannot make keys in {directory}: {error.strerror}") from None


def load_keys(directory: Path) -> MeshKeys:
    """Read what `generate_keys` wrote.

    Raises:
        ConfigError: a file is missing, is not a key or does not match the other, or the secret is
            readable by everybody.
    """
    secret_path = directory / SECRET_FILE
    try:
        if (mode := secret_path.stat().st_mode) & 0o004:
            raise ConfigError(
                f"{secret_path} is readable by everybody (mode {mode & 0o777:o}): chmod 600 it"
            )
        public = (directory / PUBLIC_FILE).read_bytes().strip()
        secret = secret_path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            f"mesh keys: {error.filename}: {error.strerror}; "
            f"`splitfuse keys {directory}` makes them"
        ) from None
    if len(public) != _KEY_CHARS or len(secret) != _KEY_CHARS or not _is_pair(public, secret):
        raise ConfigError(f"mesh keys: {PUBLIC_FILE} and {SECRET_FILE} in {directory} do not match")
    return MeshKeys(public, secret)


def keys_for(address: str, directory: Path | None, allow_plaintext: bool) -> MeshKeys | None:
    """The keys that a link at `address` runs with; None for a link that needs none.

    Raises:
        ConfigError: the link would carry plaintext beyond this machine and nobody asked for that,
            or the keys cannot be used.
    """
    if address.startswith("ipc://"):
        return None
    if directory is not None:
        return load_keys(directory)
    host, _ = split_tcp(address)
    if allow_plaintext or _is_loopback(host):
        return None
    raise ConfigError(
        f"{address} leaves this machine unencrypted: pass --mesh-keys DIR (made by "
        "`splitfuse keys`) or --allow-plaintext-tcp"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False  # a name: where it leads can change at any time


def _is_pair(public: bytes, secret: bytes) -> bool:
    try:
        return zmq.curve_public(secret) == public
    except (ValueError, zmq.ZMQError):
        return False


def _write_new(path: Path, content: bytes) -> None:
    """Create `path` with its whole content or not at all.

    Raises:
        FileExistsError: it exists already.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".key-")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike rename, fails if the name is taken
    finally:
        os.unlink(temporary)
