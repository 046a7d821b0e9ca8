from common.workload.timeline import RequestShape
from services.scheduler.core import SchedulerCore
from services.scheduler.events import RequestArrived, SendStep, WorkerJoined
from services.scheduler.simulation.placement import RoundRobinReplicas
from services.scheduler.simulation.requests import Requests
from tests.unit.scheduler.simulation.machines import a_machine, core_options


def test_workers_take_turns_whatever_is_ahead_of_them() -> None:
    core = SchedulerCore(core_options(), RoundRobinReplicas())
    requests = Requests(vocab_size=100)
    for name in ("a", "b", "c"):
        core.handle(WorkerJoined(name, a_machine().join()), 0.0)
    workers = []
    for number in range(3):
        message = requests.make(number, RequestShape(1000 if number == 0 else 10, 5))
        instructions = core.handle(RequestArrived("o", message), 0.0)
        workers += [i.worker for i in instructions if isinstance(i, SendStep)]

    assert set(workers) == {"a", "b", "c"}
    assert [r.num_running for r in core.replicas] == [1, 1, 1]
