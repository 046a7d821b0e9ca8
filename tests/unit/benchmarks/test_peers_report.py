from dataclasses import replace

from benchmarks.peers.measures import measure
from benchmarks.peers.report import remarks, render
from benchmarks.peers.rounds import Visit
from common.workload.timeline import RequestShape, Timeline

ANSWERED = Timeline(RequestShape(8, 2), 0.0, [0.5, 0.6], num_output_tokens=2)
SOUND = measure([ANSWERED], foreign_cpu_share=0.01, client_cpu_share=0.01)


def a_visit(server: str, round_number: int = 1, **loads: object) -> Visit:
    visit = Visit(server, round_number, startup_s=2.0, peak_rss_mb=900.0, greedy_text=" Paris")
    visit.loads.update(loads)  # type: ignore[arg-type]
    return visit


def test_a_report_compares_each_load_and_the_servers_themselves() -> None:
    twice = replace(SOUND, requests_per_s=2 * SOUND.requests_per_s)

    text = render([a_visit("us", A=twice, C=SOUND), a_visit("peer", A=SOUND)], "us")

    a_load, c_load, servers = text.split("### ")[1:]
    assert "| requests/s | 3.33 | 1.67 | 2.00 better |" in a_load
    assert c_load.startswith("C\n|  | us |\n")  # a peer that does not take it has no column
    assert "| peak memory, MB | 900 | 900 | 1.00 even |" in servers


def test_what_makes_numbers_doubtful_is_said() -> None:
    disturbed = replace(SOUND, foreign_cpu_share=0.05, failed=2, tokens_per_piece=1.5)
    failed = Visit("peer", 2, failure="peer ended: no memory")

    assert remarks([a_visit("us", A=SOUND), a_visit("peer", B8=disturbed), failed]) == [
        "round 2 peer failed: peer ended: no memory",
        "round 1 peer, load B8: OTHERS USED 5.0 % OF THE PROCESSOR",
        "round 1 peer, load B8: 1.50 TOKENS CAME AT A TIME",
        "round 1 peer, load B8: 2 REQUESTS FAILED",
        "greedy check: us, peer: ' Paris'",
    ]


def test_a_failed_visit_leaves_the_others_of_its_server() -> None:
    failed = Visit("peer", 1, failure="it ended")

    text = render([a_visit("us", A=SOUND), failed, a_visit("us", 2), a_visit("peer", 2)], "us")

    assert "| start to ready, s | 2.0 | 2.0 | 1.00 even |" in text
