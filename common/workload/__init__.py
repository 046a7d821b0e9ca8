"""Loads and what becomes of them: shared by `splitfuse bench`, the simulator and benchmarks.

Lengths and arrivals of requests, the timeline that a client (or a virtual clock) sees of each, and
the measures that the FastGen paper reports of many. Start at `timeline.py`.
"""
