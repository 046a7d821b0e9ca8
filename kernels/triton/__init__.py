"""The GPU backend: one Triton file per op, replayed from CUDA graphs.

Triton is not part of every installation, so nothing outside imports this package before it has
chosen this backend. Start at `backend.py`.
"""
