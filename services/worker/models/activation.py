"""Activations by the names that configs give them."""

from common.errors import StartupError
from kernels.program import Activation
from services.worker.models.config import ModelConfig

ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def make_activation(config: ModelConfig) -> Activation:
    """The activation of a model's MLPs.

    Raises:
        StartupError: it is not supported.
    """
    if config.hidden_act not in ACTIVATIONS:
        raise StartupError(
            f"hidden_act {config.hidden_act!r} is not supported; "
            f"supported are {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[config.hidden_act]
