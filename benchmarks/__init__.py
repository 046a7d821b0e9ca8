"""Measurements: each prints what it measured and how; see README.md for the commands."""
