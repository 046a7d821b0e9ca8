"""A checking worker whose passes take time: linear in what is in them, as a device's do."""

from common.messages import StepPlan, StepTiming
from services.scheduler.cost_model import StepShape
from services.scheduler.work import chunk_shape
from tests.support.checking_worker import CheckingWorker
from tests.support.scheduler_mesh import shape_of

FIXED_MS = 4.0
TOKEN_MS = 0.25
ATTENDED_MS = 2e-5


def shape_ms(shape: StepShape, slowness: float = 1.0) -> float:
    """How long a pass takes on a worker that is `slowness` times slower than the standard one."""
    attended_ms = ATTENDED_MS * shape.num_attended_tokens
    return slowness * (FIXED_MS + TOKEN_MS * shape.num_tokens + attended_ms)


def timed_worker(
    *, slowness: float = 1.0, is_calibrated: bool = True, max_num_seqs: int = 64
) -> CheckingWorker:
    """A worker with room for everything that a test asks of it."""

    def pass_ms(plan: StepPlan) -> float:
        return shape_ms(shape_of(plan), slowness)

    return CheckingWorker(
        num_blocks=4000,
        block_size=4,
        max_model_len=4000,
        max_num_seqs=max_num_seqs,
        pass_ms=pass_ms,
        calibration=_calibration(slowness) if is_calibrated else (),
    )


def _calibration(slowness: float) -> tuple[StepTiming, ...]:
    shapes = [
        chunk_shape(start, num_tokens)
        for start in (0, 500, 2000)
        for num_tokens in (1, 8, 20, 32, 80, 128, 300, 512, 1500)
    ]
    return tuple(
        StepTiming(
            shape.num_tokens,
            shape.num_context_tokens,
            shape.num_attended_tokens,
            shape.num_sequences,
            shape.num_logits,
            round(shape_ms(shape, slowness) * 1e6),
        )
        for shape in shapes
    )
