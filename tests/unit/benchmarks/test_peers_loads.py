from benchmarks.peers.loads import LOADS, make_asks, quick

VOCAB = 101


def test_every_server_gets_the_same_requests_in_one_round() -> None:
    assert make_asks(LOADS["B8"], 1, VOCAB) == make_asks(LOADS["B8"], 1, VOCAB)


def test_no_prompt_begins_like_one_of_another_load_or_round() -> None:
    asks = [
        ask
        for load in LOADS.values()
        for round_number in (1, 2)
        for ask in make_asks(load, round_number, VOCAB)
    ]

    assert len({ask.prompt[:16] for ask in asks}) == len(asks)


def test_lengths_stay_within_the_spread_and_ids_within_the_vocabulary() -> None:
    asks = make_asks(LOADS["C"], 3, VOCAB)

    assert len(asks) == 32
    assert all(1050 <= len(ask.prompt) <= 1950 for ask in asks)  # 1500 ± 30 %
    assert all(45 <= ask.output_tokens <= 83 for ask in asks)  # 64 ± 30 %
    assert all(0 <= token < VOCAB for ask in asks for token in ask.prompt)
    assert len({len(ask.prompt) for ask in asks}) > 1


def test_a_single_stream_has_fixed_lengths() -> None:
    asks = make_asks(LOADS["A"], 1, VOCAB)

    assert {(len(ask.prompt), ask.output_tokens) for ask in asks} == {(512, 64)}


def test_a_quick_load_leaves_no_client_idle() -> None:
    shorter = {name: quick(load).requests for name, load in LOADS.items()}

    assert shorter == {"A": 2, "B8": 10, "B32": 32, "C": 8}
