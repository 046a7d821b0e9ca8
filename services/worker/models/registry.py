"""Which family a model belongs to, by the architecture its config.json names."""

from collections.abc import Callable, Mapping

from common.errors import StartupError
from services.worker.models.config import ModelConfig
from services.worker.models.falcon import falcon
from services.worker.models.llama import llama
from services.worker.models.mixtral import mixtral
from services.worker.models.model import Model
from services.worker.models.opt import opt
from services.worker.models.qwen2 import qwen2

FAMILIES: Mapping[str, Callable[[ModelConfig], Model]] = {
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": llama,  # the same, with a sliding window where the config has one
    "Qwen2ForCausalLM": qwen2,
    "MixtralForCausalLM": mixtral,
    "FalconForCausalLM": falcon,
    "OPTForCausalLM": opt,
}


def make_model(config: ModelConfig) -> Model:
    """Declare the model of a config.

    Raises:
        StartupError: no family is known for it, or the family cannot compute what it asks for.
    """
    for architecture in config.architectures:
        if architecture in FAMILIES:
            return FAMILIES[architecture](config)
    raise StartupError(
        f"architecture {', '.join(config.architectures) or '(none given)'} is not supported; "
        f"supported are {', '.join(FAMILIES)}"
    )
