"""The simulator against measurements on this machine.

`measured.py` reads runs of `splitfuse bench` and plays them again on a virtual clock, `fit.py`
finds what the services around the worker cost, and `python -m benchmarks.reality` compares loads
that were not fitted with what was measured of them.
"""
