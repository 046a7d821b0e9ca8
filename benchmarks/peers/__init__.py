"""Our server and its peers under one HTTP load, on the same cores, at equal precision.

`python -m benchmarks.peers setup` gives each peer what it needs, `run` measures. A peer is data
(`peers.py`); start there to add one, and at `rounds.py` to see what a run does.
"""
