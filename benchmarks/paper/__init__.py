"""The FastGen paper's comparison, simulated: one scheduler core, its pass-time curve, two policies.

`reported.py` holds the paper's numbers, `engines.py` the two systems of the paper as far as their
pass times go, `arms.py` plays the paper's loads to them, and `claims.py` puts the ratios beside
each other. `python -m benchmarks.paper` prints them.
"""
