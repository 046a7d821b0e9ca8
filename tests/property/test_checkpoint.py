"""Whatever has happened to a scheduler core, a copy made from its checkpoint goes on alike."""

from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from common.messages import StepTiming
from services.scheduler import checkpoint
from services.scheduler.core import SchedulerCore
from services.scheduler.events import Event, Instruction
from services.scheduler.policies import PolicyName
from tests.property.test_scheduler_core import WORKERS, SchedulerMachine
from tests.support.checking_worker import CheckingWorker
from tests.support.scheduler_mesh import SchedulerMesh, options

# Of a device that takes 2 ms for the weights and 0.1 ms for each token.
CALIBRATION = tuple(
    StepTiming(n, n, n * (n + 1) // 2, 1, 1, 2_000_000 + 100_000 * n) for n in (1, 4, 16, 64)
)


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
        token_budget=st.none() | st.integers(5, 20),
        target_tbt_ms=st.none() | st.floats(0.1, 50.0),
        target_ttft_ms=st.none() | st.floats(1.0, 50.0),
    )
    def begin(
        self,
        policy: PolicyName,
        caching: bool,
        token_budget: int | None,
        target_tbt_ms: float | None,
        target_ttft_ms: float | None,
    ) -> None:
        self.mesh = TwinMesh(
            options(
                token_budget=token_budget,
                policy=policy,
                caching=caching,
                max_num_seqs=5,
                target_tbt_ms=target_tbt_ms if policy == "splitfuse" else None,
                target_ttft_ms=target_ttft_ms,
            )
        )

    @rule(worker=st.sampled_from(WORKERS))
    def join_calibrated(self, worker: str) -> None:
        self.mesh.join(worker, CheckingWorker(num_blocks=30, calibration=CALIBRATION))

    @rule()
    def copy(self) -> None:
        """A copy of the copy that there is, or else of the core: they are equal to the last bit."""
        state = checkpoint.save(self.mesh.core)
        if self.mesh.twin is not None:
            assert checkpoint.save(self.mesh.twin) == state
        self.mesh.twin = checkpoint.load(state)

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
