"""Installing with a peer whose steps are shell commands."""

import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.peers.install import install, is_installed, missing_extras
from benchmarks.peers.peers import PEERS, SPLITFUSE
from benchmarks.peers.recipe import Peer, Places, Step

WORKS = Step("works", (("sh", "-c", "echo x >> {made}"),))
BREAKS = Step("breaks", (("sh", "-c", "echo no such wheel; exit 3"),))


def places_in(work: Path) -> Places:
    return Places(
        work=work,
        model=Path("/models/tiny"),
        python=sys.executable,
        root=Path("/root"),
        precision="bfloat16",
        cores=(2, 3),
    )


def peer_of(*steps: Step) -> Peer:
    return Peer(name="peer", steps=steps, start=("true",), ready="/")


def test_a_step_is_done_once(tmp_path: Path) -> None:
    peer, places = peer_of(WORKS), places_in(tmp_path)
    said: list[str] = []

    assert install(peer, places, said.append)
    assert install(peer, replace(places, jobs=7, port=80), said.append)

    assert (tmp_path / "peer" / "tiny-bfloat16").read_text() == "x\n"
    assert is_installed(peer, places)
    assert said == ["peer: works ...", "peer: works: done before"]


def test_another_model_is_prepared_anew(tmp_path: Path) -> None:
    peer, places = peer_of(WORKS), places_in(tmp_path)
    install(peer, places, print)

    assert not is_installed(peer, replace(places, model=Path("/models/other")))


def test_a_failure_ends_the_peer_and_shows_its_last_words(tmp_path: Path) -> None:
    peer, places = peer_of(BREAKS, WORKS), places_in(tmp_path)
    said: list[str] = []

    assert not install(peer, places, said.append)

    assert "breaks FAILED: sh ended with 3: no such wheel" in said[-1]
    assert not is_installed(peer, places)
    assert not (tmp_path / "peer" / "tiny-bfloat16").exists()


def test_a_peer_runs_without_an_optional_step(tmp_path: Path) -> None:
    missing = Step("extra", (("no-such-program-here",),), optional=True)
    peer, places = peer_of(missing, WORKS), places_in(tmp_path)

    assert install(peer, places, print)
    assert is_installed(peer, places)
    assert missing_extras(peer, places) == ["extra"]


def test_only_libraries_that_exist_are_preloaded(tmp_path: Path) -> None:
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "fast.so").touch()
    peer = replace(
        peer_of(),
        preload=("{home}/fast.so", "{home}/gone.so"),
        environment={"BIND": "{cores}"},
    )

    environment = places_in(tmp_path).environment(peer)

    assert environment == {"BIND": "2,3", "LD_PRELOAD": str(tmp_path / "peer" / "fast.so")}


def test_every_placeholder_of_every_peer_means_something(tmp_path: Path) -> None:
    places = places_in(tmp_path)

    for peer in (SPLITFUSE, *PEERS.values()):
        commands = [*(c for step in peer.steps for c in step.commands), peer.start]
        filled = [part for command in commands for part in places.fill(peer, command)]
        assert not [part for part in filled if "{" in part or "}" in part]
        places.environment(peer)
