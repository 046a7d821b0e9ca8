"""A prior of pass times from datasheets: for a device that one does not have.

Each part of a pass takes the longer of the time its bytes take from memory and the time its
floating point operations take, at a share of the peak that is an assumption (Williams, Waterman and
Patterson, "Roofline", CACM 2009).
"""

from dataclasses import dataclass

from services.scheduler.cost_model import StepShape
from services.scheduler.simulation.gpus import Gpu
from services.scheduler.simulation.model_shape import ModelShape

MS_PER_S = 1e3
GIGA = 1e9
TERA = 1e12


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What datasheets do not say."""

    memory_efficiency: float = 0.75  #: share of the memory bandwidth that a pass reaches
    flop_efficiency: float = 0.55  #: share of the matrix rate that large matrix products reach
    link_efficiency: float = 0.6  #: share of the link bandwidth that a large all-reduce reaches
    all_reduce_us: float = 15.0  #: of a small all-reduce, two of which a layer has
    pass_ms: float = 1.0  #: launches, sampling, norms and activations of a whole pass
    memory_utilization: float = 0.9  #: share of the memory for weights and KV together

    def __post_init__(self) -> None:
        for name in (
            "memory_efficiency",
            "flop_efficiency",
            "link_efficiency",
            "memory_utilization",
        ):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be in (0, 1]")
        if min(self.all_reduce_us, self.pass_ms) < 0:
            raise ValueError("all_reduce_us and pass_ms must not be negative")


class RooflinePassTime:
    """Pass times of a model on one to several equal GPUs with tensor parallelism.

    Raises:
        ValueError: the weights do not fit.
    """

    def __init__(
        self,
        model: ModelShape,
        gpu: Gpu,
        tensor_parallel: int = 1,
        assumptions: Assumptions | None = None,
    ) -> None:
        assumed = assumptions or Assumptions()
        self.model = model
        self.gpu = gpu
        self.tensor_parallel = tensor_parallel
        self.assumptions = assumed
        #: bytes and operations per millisecond, of all GPUs together
        self._bytes_per_ms = (
            tensor_parallel * gpu.memory_gb_per_s * GIGA * assumed.memory_efficiency / MS_PER_S
        )
        self._flop_per_ms = tensor_parallel * gpu.tflops * TERA * assumed.flop_efficiency / MS_PER_S
        self._link_bytes_per_ms = gpu.link_gb_per_s * GIGA * assumed.link_efficiency / MS_PER_S
        if self.kv_capacity_tokens < 1:
            raise ValueError(
                f"{model.num_params * model.weight_bytes / GIGA:.1f} GB of weights leave no room "
                f"for KV on {tensor_parallel} x {gpu.name} of {gpu.memory_gb:g} GB"
            )

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens whose KV fits beside the weights."""
        room = self.tensor_parallel * self.gpu.memory_gb * GIGA
        room *= self.assumptions.memory_utilization
        room -= self.model.num_params * self.model.weight_bytes
        return int(room / self.model.kv_bytes_per_token)

    def ms(self, shape: StepShape) -> float:
        return (
            self._linear_ms(shape.num_tokens)
            + self._attention_ms(shape.num_context_tokens, shape.num_attended_tokens)
            + self._logits_ms(shape.num_logits)
            + self._all_reduce_ms(shape.num_tokens)
            + self.assumptions.pass_ms
        )

    def _slower(self, num_bytes: float, num_flop: float) -> float:
        return max(num_bytes / self._bytes_per_ms, num_flop / self._flop_per_ms)

    def _linear_ms(self, num_tokens: int) -> float:
        """Projections and MLP; experts that no token chooses are not read."""
        model = self.model
        share_used = 1 - (1 - model.experts_per_token / model.num_experts) ** num_tokens
        read = model.attention_params + model.num_experts * share_used * model.expert_params
        active = model.attention_params + model.experts_per_token * model.expert_params
        return self._slower(read * model.weight_bytes, 2.0 * active * num_tokens)

    def _attention_ms(self, num_context_tokens: int, num_attended_tokens: int) -> float:
        """Decodes wait for memory and chunks for arithmetic, so the two add up."""
        model = self.model
        num_flop = 4.0 * model.num_layers * model.num_heads * model.head_size * num_attended_tokens
        num_bytes = model.kv_bytes_per_token * num_context_tokens
        return num_bytes / self._bytes_per_ms + num_flop / self._flop_per_ms

    def _logits_ms(self, num_logits: int) -> float:
        params = self.model.logits_params
        if not num_logits:
            return 0.0
        return self._slower(params * self.model.weight_bytes, 2.0 * params * num_logits)

    def _all_reduce_ms(self, num_tokens: int) -> float:
        """Two per layer, as a ring: each GPU sends 2 (n - 1) / n of the activations."""
        count = self.tensor_parallel
        if count == 1:
            return 0.0
        num_bytes = 2 * (count - 1) / count * num_tokens * self.model.hidden_size * 2
        each_ms = self.assumptions.all_reduce_us / 1e3 + num_bytes / self._link_bytes_per_ms
        return 2 * self.model.num_layers * each_ms
