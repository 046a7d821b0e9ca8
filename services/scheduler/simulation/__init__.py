"""The scheduler core on a virtual clock: what a load would see, without a worker or a network.

`simulator.py` drives the same `SchedulerCore` that serves, `worker.py` stands for workers whose
passes take what a function of their shape says (`pass_time.py`, `roofline.py`), and `host.py` for
the services around them. `scenario.py` makes a run from options, `planning.py` searches for what a
load needs; `python -m services.scheduler.simulation simulate|plan` is the door.
"""
