"""Compare `splitfuse serve` with the servers that people use instead.

    python -m benchmarks.peers setup [--peers NAME ...] [--jobs 2]
    python -m benchmarks.peers run [--peers NAME ...] [--loads A B8 B32 C] [--rounds 3] [--quick]

`setup` installs each peer into a virtual environment of its own below --work, builds what must be
built, converts the model, and goes on where one fails. `run` takes turns: in every round ours and
each peer start, take the same requests over HTTP, and end; it prints medians, ratios and their
spread. All get the cores that this process may use (`taskset -c 0,1 python -m ...` narrows them).
"""

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.peers.closed_loop import speller
from benchmarks.peers.install import install, is_installed, missing_extras
from benchmarks.peers.loads import LOADS, quick
from benchmarks.peers.peers import PEERS, SPLITFUSE
from benchmarks.peers.recipe import Peer, Places
from benchmarks.peers.report import render, write_json
from benchmarks.peers.rounds import Course, Visit, visit
from splitfuse.bench.machine import Machine, this_machine
from splitfuse.cache import cache_dir
from splitfuse.models import resolve_model

ROOT = Path(__file__).resolve().parents[2]


def say(line: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {line}", flush=True)


def setup(options: argparse.Namespace, places: Places) -> int:
    done = {name: install(PEERS[name], places, say) for name in options.peers}
    for name, good in done.items():
        extras = missing_extras(PEERS[name], places)
        without = f", without {' and '.join(extras)}" if extras else ""
        say(f"{name}: {'ready' + without if good else 'cannot run here'}")
    return 0 if all(done.values()) else 1


def run(options: argparse.Namespace, places: Places, machine: Machine) -> int:
    peers = _installed([PEERS[name] for name in options.peers], places)
    loads = [quick(LOADS[name]) if options.quick else LOADS[name] for name in options.loads]
    course = Course(
        loads=loads,
        vocab_size=json.loads((places.model / "config.json").read_text())["vocab_size"],
        spell=speller(Tokenizer.from_file(str(places.model / "tokenizer.json"))),
        say=say,
    )
    say(f"{machine.cpu}, cores {machine.cores}, {machine.precision}, model {places.model.name}")
    about = {
        "machine": asdict(machine),
        "model": places.model.name,
        "loads": [asdict(load) for load in loads],
        "splitfuse_flags": options.splitfuse_flags,
        "without": {peer.name: missing_extras(peer, places) for peer in peers},
    }
    visits: list[Visit] = []
    for number in range(1, (options.rounds or (1 if options.quick else 3)) + 1):
        for peer in (SPLITFUSE, *peers):
            flags = tuple(shlex.split(options.splitfuse_flags)) if peer is SPLITFUSE else ()
            visits.append(visit(peer, flags, places, course, number))
            write_json(options.json, about, visits)
    print(render(visits, SPLITFUSE.name))
    say(f"all of it in {options.json}")
    return 1 if any(v.failure for v in visits) else 0


def _installed(peers: Sequence[Peer], places: Places) -> list[Peer]:
    for peer in peers:
        if not is_installed(peer, places):
            say(f"{peer.name} is left out: not set up for {places.model.name}, see `setup`")
    return [peer for peer in peers if is_installed(peer, places)]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("setup", "run"):
        sub = verbs.add_parser(verb)
        sub.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
        sub.add_argument("--work", type=Path, default=cache_dir() / "peers", help="where all is")
        sub.add_argument("--model", help="directory or name, as `splitfuse serve` takes it")
        sub.add_argument(
            "--precision",
            choices=["auto", "bfloat16", "float32"],
            default="auto",
            help="of every server; auto: bfloat16 where the CPU multiplies it",
        )
        if verb == "setup":
            sub.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
        else:
            sub.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
            sub.add_argument("--rounds", type=int, help="default: 3, or 1 if quick")
            sub.add_argument("--quick", action="store_true", help="a quarter of the requests")
            sub.add_argument("--splitfuse-flags", default="", help="more flags of ours, quoted")
            sub.add_argument("--json", type=Path, help="default: a new file in WORK/results")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended
    options = parse(argv)
    machine = this_machine()
    if options.precision != "auto":
        machine = replace(machine, precision=options.precision)
    places = Places(
        work=options.work.expanduser().absolute(),
        model=resolve_model(options.model, say),
        python=sys.executable,
        root=ROOT,
        precision=machine.precision,
        cores=machine.cores,
        jobs=getattr(options, "jobs", 1),
    )
    if options.verb == "setup":
        return setup(options, places)
    name = f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}.json"
    options.json = options.json or places.work / "results" / name
    return run(options, places, machine)


if __name__ == "__main__":
    sys.exit(main())
