import subprocess
import sys

import psutil

from splitfuse.bench.process_tree import ProcessTree

# It ignores SIGTERM, and ends after a minute should the test fail.
CHILD = """
import select, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
select.select([], [], [], 60)
"""
# Uses the processor for several ticks of its clock, starts the child in a session of its own, says
# its pid, and waits.
PARENT = f"""
import subprocess, sys, time
while time.process_time() < 0.1: pass
child = subprocess.Popen(
    [sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE, start_new_session=True
)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_at_the_end_nothing_of_the_tree_is_alive() -> None:
    root = psutil.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with root.stdin, root.stdout, ProcessTree(root, is_watched=True) as tree:
        child = psutil.Process(int(root.stdout.readline()))
        cpu_s = tree.cpu_s()

    assert not root.is_running()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert cpu_s > 0
    assert tree.peak_rss_bytes > 5e6  # two interpreters
    assert tree.cpu_s() >= cpu_s  # the dead keep what they used
