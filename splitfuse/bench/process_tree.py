"""A process with all that it started: its memory, its processor time, its end."""

import contextlib
import os
import threading
from collections.abc import Iterator

import psutil

POLL_S = 0.5  # between looks at memory; a look costs some milliseconds
TERM_S = 15.0  # to end by itself before it is killed


class ProcessTree:
    """Everything that descends from a process which leads a session of its own.

    At the end of the block nothing of it is alive.

    Args:
        is_watched: look at it twice a second, for some milliseconds each: then the peak of its
            memory is known, and the processor time of what came and went.
    """

    def __init__(self, root: psutil.Popen, *, is_watched: bool) -> None:
        self.root = root
        #: sum over the processes alive at one moment that was looked at; shared pages count twice
        self.peak_rss_bytes = 0
        self._seen: dict[int, psutil.Process] = {}
        self._cpu_s: dict[int, float] = {}  # last reading: a dead process keeps what it used
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._is_watched = is_watched
        self._watch = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> "ProcessTree":
        if self._is_watched:
            self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._is_watched:
            self._watch.join()
        self.end()

    def cpu_s(self) -> float:
        """User and system seconds so far, of the dead too."""
        self.look()
        with self._lock:
            return sum(self._cpu_s.values())

    def look(self) -> None:
        """Read memory and processor time of all that live."""
        with self._lock:
            rss = 0
            for process in self._alive():
                with contextlib.suppress(psutil.Error), process.oneshot():
                    times = process.cpu_times()
                    self._cpu_s[process.pid] = times.user + times.system
                    rss += process.memory_info().rss
            self.peak_rss_bytes = max(self.peak_rss_bytes, rss)

    def end(self) -> None:
        """Ask the root to end, then kill what is left, orphans too."""
        members = list(self._alive())
        with contextlib.suppress(psutil.Error):
            self.root.terminate()
        _, alive = psutil.wait_procs([self.root], timeout=TERM_S)
        for process in {*members, *self._alive(), *alive}:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs([*members, self.root], timeout=TERM_S)

    def _poll(self) -> None:
        while not self._over.wait(POLL_S):
            self.look()

    def _alive(self) -> Iterator[psutil.Process]:
        """Descendants now, those seen before that lost their parents, and the root's session."""
        with contextlib.suppress(psutil.Error):
            for process in [psutil.Process(self.root.pid), *self.root.children(recursive=True)]:
                self._seen.setdefault(process.pid, process)
        for pid in psutil.pids():
            if pid not in self._seen and _session_of(pid) == self.root.pid:
                with contextlib.suppress(psutil.Error):
                    self._seen[pid] = psutil.Process(pid)
        return (process for process in list(self._seen.values()) if process.is_running())


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None
