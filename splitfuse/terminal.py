"""What `serve` says: prefixed log lines of services, sentences of our own, and a spinner."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

STILL_WAITING_S = 10.0  # between lines that say so where there is no terminal to show a spinner
_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_red", "bright_cyan")
_CONTROL = dict.fromkeys([*range(9), *range(10, 32), 127])  # all but the tab


class Terminal:
    """All output of the supervisor goes through here, so that a spinner and lines do not mix."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._colours = itertools.cycle(_COLOURS)
        self._prefixes: dict[str, Text] = {}
        self._rendered: dict[str, str] = {}  # the same, as this terminal wants its colours
        self._is_spinning = False

    def say(self, text: str, style: str = "bold") -> None:
        """A sentence of our own."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def log(self, name: str, line: str) -> None:
        """A line that the service called `name` has printed; control characters are dropped."""
        line = line.translate(_CONTROL)
        if name not in self._prefixes:
            self._prefixes[name] = Text(f"{name:<12} ", style=next(self._colours))
        if self._is_spinning:
            self._console.print(self._prefixes[name] + Text(line), soft_wrap=True)
            return
        # Rich would take a third of a millisecond for each, and there can be many lines.
        if name not in self._rendered:
            with self._console.capture() as prefix:
                self._console.print(self._prefixes[name], end="")
            self._rendered[name] = prefix.get()
        self._console.file.write(f"{self._rendered[name]}{line}\n")
        self._console.file.flush()

    @contextmanager
    def waiting(self, what: str) -> Iterator[Callable[[float], None]]:
        """Show that something slow goes on; the caller reports the seconds since it began."""
        if self._console.is_terminal:
            with self._console.status(what) as status:
                self._is_spinning = True
                try:
                    yield lambda seconds: status.update(f"{what} ({seconds:.0f} s)")
                finally:
                    self._is_spinning = False
            return
        self.say(what)
        said = 0.0

        def report(seconds: float) -> None:
            nonlocal said
            if seconds - said >= STILL_WAITING_S:
                said = seconds
                self.say(f"{what} ({seconds:.0f} s)")

        yield report
