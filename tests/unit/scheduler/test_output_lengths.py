from services.scheduler.output_lengths import INITIAL_TOKENS, OutputLengths


def test_before_anything_is_seen_outputs_are_expected_to_be_short() -> None:
    assert OutputLengths().expected == INITIAL_TOKENS


def test_equal_outputs_are_learned_to_the_token() -> None:
    lengths = OutputLengths()
    for _ in range(300):
        lengths.observe(200)

    assert 199 <= lengths.expected <= 201


def test_one_long_output_is_enough_to_be_careful() -> None:
    lengths = OutputLengths()
    lengths.observe(300)

    assert lengths.expected > 300


def test_spread_counts_twice() -> None:
    lengths = OutputLengths()
    for _ in range(200):
        lengths.observe(100)
        lengths.observe(200)

    assert 230 <= lengths.expected <= 270  # mean 150, deviation 50


def test_what_it_learned_fades() -> None:
    lengths = OutputLengths()
    lengths.observe(5000)
    for _ in range(500):
        lengths.observe(10)

    assert lengths.expected < 12
