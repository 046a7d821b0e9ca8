"""Whatever has happened to a scheduler core, a copy made from its checkpoint goes on alike."""

from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from services.scheduler import checkpoint
from services.scheduler.core import SchedulerCore
from services.scheduler.events import Event, Instruction
from services.scheduler.policies import PolicyName
from tests.property.test_scheduler_core import SchedulerMachine
from tests.support.scheduler_mesh import SchedulerMesh, options


@dataclass
class TwinMesh(SchedulerMesh):
    """Everything that happens to the core happens to a copy of it, too."""

    twin: SchedulerCore | None = None

    def handle(self, event: Event) -> list[Instruction]:
        instructions = super().handle(event)
        if self.twin is not None:
            assert self.twin.handle(event, self.now) == instructions
            self.twin.check()
        return instructions


class CheckpointMachine(SchedulerMachine):
    """The stories of the scheduler core, with a copy made now and then."""

    mesh: TwinMesh

    @initialize(
        policy=st.sampled_from(("splitfuse", "prefill-first", "orca")),
        caching=st.booleans(),
        token_budget=st.integers(5, 20),
    )
    def begin(self, policy: PolicyName, caching: bool, token_budget: int) -> None:
        self.mesh = TwinMesh(
            options(token_budget=token_budget, policy=policy, caching=caching, max_num_seqs=5)
        )

    @rule()
    def copy(self) -> None:
        self.mesh.twin = checkpoint.load(checkpoint.save(self.mesh.core))

    @rule()
    def go_on_with_the_copy(self) -> None:
        if self.mesh.twin is not None:
            self.mesh.core, self.mesh.twin = self.mesh.twin, self.mesh.core


TestCheckpoint = CheckpointMachine.TestCase
TestCheckpoint.settings = settings(
    max_examples=40,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
