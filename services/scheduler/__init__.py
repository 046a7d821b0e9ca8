"""The scheduler: composes every forward pass of the workers attached to it.

Owns the queue, the state and token ids of every request, the KV block tables, the prefix cache and
the placement on workers. Never sees text, never touches a tensor. Start with `core.py`: events in,
instructions out; `planner.py` composes one pass; `service.py` is the shell around them.
"""
