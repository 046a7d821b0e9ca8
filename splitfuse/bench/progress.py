"""What a person sees while a load runs; it takes next to nothing of the processor."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from common.workload.timeline import Timeline

REFRESH_S = 1.0  # drawing takes milliseconds in which no token's time is taken


class LoadProgress:
    """Counts requests of one load as they end."""

    def __init__(self, progress: Progress, what: str, num_requests: int) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=num_requests, seen="")
        self._num_ended = self._num_failed = self._num_tokens = 0
        self._began = self._drawn_at = time.monotonic()

    def on_end(self, timeline: Timeline) -> None:
        """A request has ended; called between tokens of others."""
        self._num_ended += 1
        self._num_failed += timeline.failure is not None
        self._num_tokens += timeline.num_output_tokens
        now = time.monotonic()
        if now - self._drawn_at >= REFRESH_S:
            self._drawn_at = now
            self._draw(now)

    def end(self) -> None:
        """Show how it ended."""
        self._draw(time.monotonic())

    def _draw(self, now: float) -> None:
        elapsed_s = max(now - self._began, 1e-9)
        seen = f"{self._num_ended / elapsed_s:.2f} requests/s, "
        seen += f"{self._num_tokens / elapsed_s:.0f} tokens/s"
        if self._num_failed:
            seen += f", {self._num_failed} failed"
        self._progress.update(self._task, completed=self._num_ended, seen=seen)
        self._progress.refresh()


@contextmanager
def load_progress(console: Console, what: str, num_requests: int) -> Iterator[LoadProgress]:
    """A bar on a terminal, which goes when the block ends; nothing elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[seen]}"),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns,
        console=console,
        auto_refresh=False,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        loading = LoadProgress(progress, what, num_requests)
        yield loading
        loading.end()
