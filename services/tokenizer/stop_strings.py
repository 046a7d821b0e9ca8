"""Finds stop strings in a text that comes in pieces, however it is cut. Pure.

The match is the one that ends first, for generation ends there; of several that end together it is
the longest. Text that could still become part of a stop string is held back, never more: the
longest end of the text that begins a stop string. Linear in the text (an Aho-Corasick automaton:
the depth of its state is exactly the number of characters to hold back).
"""

from collections import deque
from collections.abc import Sequence

_ROOT = 0


class StopStrings:
    """The automaton of a set of stop strings.

    Raises:
        ValueError: a stop string is empty.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        if "" in stop:
            raise ValueError("a stop string is empty")
        self._first_chars = frozenset(string[0] for string in stop)
        self._children: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._match: list[str | None] = [None]  # longest stop string that ends in this state
        self._fallback = [_ROOT]  # state of the longest proper suffix
        for string in stop:
            self._insert(string)
        self._link()

    def may_begin_in(self, text: str) -> bool:
        """Whether any character of `text` begins a stop string."""
        return not self._first_chars.isdisjoint(text)

    def step(self, state: int, char: str) -> int:
        """The state behind `char`."""
        while state != _ROOT and char not in self._children[state]:
            state = self._fallback[state]
        return self._children[state].get(char, _ROOT)

    def match(self, state: int) -> str | None:
        """The stop string that is complete in this state."""
        return self._match[state]

    def num_held(self, state: int) -> int:
        """How many of the last characters begin a stop string."""
        return self._depth[state]

    def _insert(self, string: str) -> None:
        state = _ROOT
        for char in string:
            if char not in self._children[state]:
                self._children[state][char] = len(self._children)
                self._children.append({})
                self._depth.append(self._depth[state] + 1)
                self._match.append(None)
                self._fallback.append(_ROOT)
            state = self._children[state][char]
        self._match[state] = string

    def _link(self) -> None:
        """Fill in fallbacks and inherited matches, shallow states first."""
        queue = deque(self._children[_ROOT].values())
        while queue:
            state = queue.popleft()
            for char, child in self._children[state].items():
                self._fallback[child] = self.step(self._fallback[state], char)
                self._match[child] = self._match[child] or self._match[self._fallback[child]]
                queue.append(child)


class StopBuffer:
    """Text on its way out, stopped at the first stop string."""

    def __init__(self, stop: StopStrings) -> None:
        self._stop = stop
        self._state = _ROOT
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Take more text.

        Returns:
            The text that may go out now, and the stop string that has been completed, if any. The
            text then ends right before that string, and nothing may be fed afterwards.
        """
        if self._state == _ROOT and not self._stop.may_begin_in(text):
            return text, None
        state = self._state
        for num_read, char in enumerate(text, start=1):
            state = self._stop.step(state, char)
            if (match := self._stop.match(state)) is not None:
                seen = self._held + text[:num_read]
                return seen[: len(seen) - len(match)], match
        self._state = state
        seen = self._held + text
        num_out = len(seen) - self._stop.num_held(state)
        self._held = seen[num_out:]
        return seen[:num_out], None

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held, self._state = self._held, "", _ROOT
        return held
