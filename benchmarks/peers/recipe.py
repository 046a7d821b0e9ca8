"""What a peer is, as data: how to install it, prepare its model, start it and ask it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Command = tuple[str, ...]  # argv; each part may hold {placeholders} of `Places`


@dataclass(frozen=True)
class Step:
    """Commands that run in order in the peer's own folder, once for each spelling of them."""

    name: str
    commands: tuple[Command, ...]
    optional: bool = False  # the peer runs without it, only slower


@dataclass(frozen=True)
class Peer:
    """A server that is measured. Strings may hold {placeholders}, see `Places.values`."""

    name: str
    steps: tuple[Step, ...]
    start: Command
    ready: str  # path that answers 200 once it can serve
    environment: Mapping[str, str] = field(default_factory=dict)
    preload: tuple[str, ...] = ()  # shared libraries, those that exist
    served_name: str = "m"  # the model's name in requests
    loads: tuple[str, ...] = ("A", "B8", "B32", "C")
    openai_only: bool = False  # refuses fields that OpenAI's API lacks, and prompts of token ids


@dataclass(frozen=True)
class Places:
    """Where things are and how many there may be: what placeholders stand for."""

    work: Path  # everything installed or made is below
    model: Path  # in Hugging Face layout
    python: str  # that makes virtual environments, and runs our own server
    root: Path  # of this repository
    precision: str
    cores: tuple[int, ...]
    jobs: int = 1  # of a build
    port: int = 0

    def home(self, peer: Peer) -> Path:
        return self.work / peer.name

    def values(self, peer: Peer) -> dict[str, str]:
        bfloat16 = self.precision == "bfloat16"
        home = self.home(peer)
        return {
            "home": str(home),
            "bin": str(home / "venv" / "bin"),
            "made": str(home / f"{self.model.name}-{self.precision}"),  # the converted model
            "model": str(self.model),
            "python": self.python,
            "root": str(self.root),
            "dtype": self.precision,
            "short": "bf16" if bfloat16 else "f32",
            "file_dtype": "fp16" if bfloat16 else "fp32",
            "kv": "f16" if bfloat16 else "f32",  # llama.cpp has no faster 16 bits
            "cores": ",".join(map(str, self.cores)),
            "threads": str(len(self.cores)),
            "jobs": str(self.jobs),
            "port": str(self.port),
        }

    def fill(self, peer: Peer, command: Command) -> list[str]:
        """The argv that `command` means here."""
        values = self.values(peer)
        return [part.format_map(values) for part in command]

    def environment(self, peer: Peer) -> dict[str, str]:
        """What the server sees besides our own environment."""
        values = self.values(peer)
        filled = {name: value.format_map(values) for name, value in peer.environment.items()}
        libraries = [path.format_map(values) for path in peer.preload]
        present = [path for path in libraries if Path(path).exists()]
        return filled | ({"LD_PRELOAD": ":".join(present)} if present else {})

    def stamp(self, peer: Peer, step: Step) -> Path:
        """The file that says `step` is done; its name changes with what the step does here."""
        at_any_speed = Places(
            self.work, self.model, self.python, self.root, self.precision, self.cores
        )
        commands = [at_any_speed.fill(peer, command) for command in step.commands]
        digest = hashlib.sha256(repr(commands).encode()).hexdigest()[:12]
        return self.home(peer) / "done" / f"{step.name.replace(' ', '-')}-{digest}"
