"""The CPU backend: a program and its batch are handed to C once per step."""
