"""What each op of a model means (contract and reference), and its fast implementations.

Imports nothing here: transformers probes for a package of this name and must not load ours.
"""
