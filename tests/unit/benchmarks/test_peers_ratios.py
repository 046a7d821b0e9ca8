from benchmarks.peers.ratios import Metric, Spread, ratio, spread, table

RATE = Metric("rate", "requests/s", higher_is_better=True, digits=1)
GAP = Metric("gap", "gap, ms", higher_is_better=False)
ALONE = Metric("alone", "of one stream", higher_is_better=True, only_load="A")


def test_a_spread_has_median_least_and_most() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert spread([]) is None


def test_ratios_are_taken_within_a_round_because_the_machine_drifts() -> None:
    ours = [{"rate": 3.0}, {"rate": 30.0}]
    theirs = [{"rate": 2.0}, {"rate": 20.0}]

    assert ratio(ours, theirs, "rate") == Spread(1.5, 1.5, 1.5)


def test_a_round_that_failed_on_either_side_gives_no_ratio() -> None:
    ours = [{}, {"rate": 4.0}, {"rate": 6.0}]
    theirs = [{"rate": 2.0}, {}, {"rate": 2.0}]

    assert ratio(ours, theirs, "rate") == Spread(3.0, 3.0, 3.0)
    assert ratio(ours[:1], theirs[:1], "rate") is None
    assert ratio([{"rate": 1.0}], [{"rate": 0.0}], "rate") is None


def test_a_table_shows_values_and_says_which_way_a_ratio_is_good() -> None:
    servers = {
        "us": [{"rate": 3.0, "gap": 40.0}, {"rate": 3.2, "gap": 42.0}],
        "peer": [{"rate": 2.0, "gap": 20.0}, {"rate": 2.0, "gap": 21.0}],
    }

    assert table([RATE, GAP, ALONE], "B8", servers, "us") == [
        "|  | us | peer | us / peer |",
        "| --- | --- | --- | --- |",
        "| requests/s | 3.1 (3.0-3.2) | 2.0 | 1.55 (1.50-1.60) better |",
        "| gap, ms | 41 (40-42) | 20 (20-21) | 2.00 worse |",
    ]


def test_a_metric_of_one_load_is_shown_there() -> None:
    lines = table([ALONE], "A", {"us": [{"alone": 1234.0}]}, "us")

    assert lines[2:] == ["| of one stream | 1,234 |"]


def test_peers_are_shown_even_if_we_failed() -> None:
    lines = table([RATE], "B8", {"peer": [{"rate": 2.0}]}, "us")

    assert lines[2:] == ["| requests/s | 2.0 | – |"]
