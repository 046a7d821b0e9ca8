import io

from rich.console import Console

from splitfuse.terminal import Terminal


def test_lines_and_sentences_are_plain_where_there_is_no_terminal() -> None:
    output = io.StringIO()
    terminal = Terminal(Console(file=output, width=40))

    terminal.say("Ready")
    terminal.log("gateway-0", "a line that is longer than the forty columns of this terminal")

    assert output.getvalue().splitlines() == [
        "Ready",
        "gateway-0    a line that is longer than the forty columns of this terminal",
    ]


def test_each_name_has_a_colour_of_its_own() -> None:
    output = io.StringIO()
    terminal = Terminal(Console(file=output, force_terminal=True, color_system="standard"))

    for name in ("worker-0", "worker-1", "worker-0"):
        terminal.log(name, "x")

    first, second, third = output.getvalue().splitlines()
    assert first == third
    assert first.replace("worker-0", "") != second.replace("worker-1", "")


def test_markup_and_control_characters_of_a_service_mean_nothing() -> None:
    output = io.StringIO()
    Terminal(Console(file=output)).log("worker-0", "[bold]\x1b[2J\x07\ttab")

    assert output.getvalue() == "worker-0     [bold][2J\ttab\n"


def test_waiting_is_said_again_every_ten_seconds_without_a_terminal() -> None:
    output = io.StringIO()
    terminal = Terminal(Console(file=output, width=80))

    with terminal.waiting("Loading") as still_waiting:
        for seconds in (0.1, 5, 11, 12, 22):
            still_waiting(seconds)

    assert output.getvalue().splitlines() == ["Loading", "Loading (11 s)", "Loading (22 s)"]


def test_lines_are_seen_while_a_spinner_turns() -> None:
    output = io.StringIO()
    terminal = Terminal(Console(file=output, force_terminal=True, color_system=None, width=80))

    with terminal.waiting("Loading") as still_waiting:
        terminal.log("worker-0", "here")
        still_waiting(3)

    assert "worker-0     here" in output.getvalue()
