"""Decides again what a scheduler recorded.

`reproduction.py` feeds the events of a record to the core and compares every answer, bit for bit;
`differences.py` says in words where two answers differ. `what_if.py` plays the same arrivals to the
core under other options, with workers simulated as `recorded_load.py` found them in the record.
`python -m services.scheduler.replay FILE` is the door.
"""
