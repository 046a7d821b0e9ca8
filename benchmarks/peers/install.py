"""Bring a peer onto this machine, step by step; what is done stays done."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.recipe import Peer, Places, Step
from splitfuse.bench.server_process import last_line

Say = Callable[[str], None]


def install(peer: Peer, places: Places, say: Say) -> bool:
    """Do the steps of `peer` that are not done yet; False if it cannot run on this machine."""
    (places.home(peer) / "done").mkdir(parents=True, exist_ok=True)
    return all(_step(peer, step, places, say) for step in peer.steps)


def is_installed(peer: Peer, places: Places) -> bool:
    return all(step.optional or places.stamp(peer, step).exists() for step in peer.steps)


def missing_extras(peer: Peer, places: Places) -> list[str]:
    """Optional steps that are not done: the peer runs without, maybe slower."""
    extras = [step for step in peer.steps if step.optional]
    return [step.name for step in extras if not places.stamp(peer, step).exists()]


def _step(peer: Peer, step: Step, places: Places, say: Say) -> bool:
    stamp = places.stamp(peer, step)
    if stamp.exists():
        say(f"{peer.name}: {step.name}: done before")
        return True
    say(f"{peer.name}: {step.name} ...")
    log = places.home(peer) / f"{step.name}.log"
    failure = _run_all([places.fill(peer, command) for command in step.commands], log)
    if failure is None:
        stamp.touch()
        return True
    say(f"{peer.name}: {step.name} FAILED: {failure} (all of it in {log})")
    return step.optional


def _run_all(commands: list[list[str]], log: Path) -> str | None:
    """Run them in the log's folder until one fails; what it said last, or None."""
    with log.open("wb") as output:
        for command in commands:
            try:
                done = subprocess.run(
                    command,
                    cwd=log.parent,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    check=False,
                )
            except OSError as error:  # no cmake, no apt-get
                return f"{command[0]}: {error.strerror}"
            if done.returncode:
                return f"{command[0]} ended with {done.returncode}: {last_line(log)}"
    return None
