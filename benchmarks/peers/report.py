"""What a run found, as text for people and JSON for machines."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peers.measures import doubts
from benchmarks.peers.ratios import LOAD_METRICS, SERVER_METRICS, Rounds, table
from benchmarks.peers.rounds import Visit


def write_json(path: Path, about: Mapping[str, Any], visits: Sequence[Visit]) -> None:
    """`about` says what was run on what; all of it must be JSON."""
    report = {**about, "visits": [asdict(visit) for visit in visits]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


def render(visits: Sequence[Visit], ours: str) -> str:
    """Tables of all loads and of the servers themselves, then what was not as it should be."""
    parts = []
    for load in dict.fromkeys(name for visit in visits for name in visit.loads):
        columns = _columns(visits, lambda v, load=load: _of_load(v, load))
        parts += [f"### {load}", *table(LOAD_METRICS, load, columns, ours), ""]
    parts += ["### The servers", *table(SERVER_METRICS, None, _columns(visits, _of_server), ours)]
    return "\n".join([*parts, "", *remarks(visits)])


def remarks(visits: Sequence[Visit]) -> list[str]:
    """Failures, what makes measures doubtful, and what each said to the greedy check."""
    found = [f"{_name(v)} failed: {v.failure}" for v in visits if v.failure]
    for visit in visits:
        for name, measures in visit.loads.items():
            found += [f"{_name(visit)}, load {name}: {doubt}" for doubt in doubts(measures)]
    return found + _greedy_remarks(visits)


def _greedy_remarks(visits: Sequence[Visit]) -> list[str]:
    texts: dict[str, list[str]] = {}
    for visit in visits:
        if visit.greedy_text and visit.server not in texts.setdefault(visit.greedy_text, []):
            texts[visit.greedy_text].append(visit.server)
    return [f"greedy check: {', '.join(servers)}: {text!r}" for text, servers in texts.items()]


def _name(visit: Visit) -> str:
    return f"round {visit.round_number} {visit.server}"


def _columns(visits: Sequence[Visit], values: Any) -> dict[str, Rounds]:
    columns: dict[str, list[Mapping[str, float]]] = {}
    for visit in visits:
        columns.setdefault(visit.server, []).append(values(visit))
    return {name: rounds for name, rounds in columns.items() if any(rounds)}


def _of_load(visit: Visit, load: str) -> dict[str, Any]:
    return asdict(visit.loads[load]) if load in visit.loads else {}


def _of_server(visit: Visit) -> dict[str, Any]:
    return {} if visit.failure else asdict(visit)
