"""Mixtral: Llama whose MLP is a choice of a few of many experts.

Checkpoints come in two spellings: each expert with three matrices of its own (w1 the gate, w3 up,
w2 down), or all experts in one tensor of three dimensions.
"""

from common.errors import StartupError
from kernels.program import Activation
from services.worker.models.activation import make_activation
from services.worker.models.builder import ModelBuilder
from services.worker.models.config import ModelConfig
from services.worker.models.llama import add_attention, add_mlp_norm, rope_tables
from services.worker.models.model import Model, Part
from services.worker.models.rope import make_rope


def mixtral(config: ModelConfig) -> Model:
    """Declare the model that `config` describes.

    Raises:
        StartupError: the activation or the rope type is not supported, or a token takes more
            experts than there are, or none.
    """
    if not 1 <= config.num_experts_per_tok <= config.num_local_experts:
        raise StartupError(
            f"num_experts_per_tok is {config.num_experts_per_tok}, "
            f"it must be 1 to num_local_experts {config.num_local_experts}"
        )
    rope, activation = make_rope(config), make_activation(config)
    model = ModelBuilder(config)
    model.embed("model.embed_tokens")
    for layer in range(config.num_hidden_layers):
        add_attention(model, config, layer, rope, config.sliding_window)
        add_mlp_norm(model, config, layer)
        _add_experts(model, config, layer, activation)
    model.head("rms", "model.norm", config.rms_norm_eps)
    return model.build(rope_tables(config))


def _add_experts(
    model: ModelBuilder, config: ModelConfig, layer: int, activation: Activation
) -> None:
    apart, fused = f"model.layers.{layer}.block_sparse_moe", f"model.layers.{layer}.mlp"
    hidden, inner, count = config.hidden_size, config.intermediate_size, config.num_local_experts
    gate_up = tuple(
        Part(f"{apart}.experts.{e}.{name}.weight", inner)
        for e in range(count)
        for name in ("w1", "w3")
    )
    down = tuple(Part(f"{apart}.experts.{e}.w2.weight", hidden) for e in range(count))
    model.experts(
        layer,
        activation,
        router=((Part(f"{apart}.gate.weight", count),), (Part(f"{fused}.gate.weight", count),)),
        gate_up=(gate_up, (Part(f"{fused}.experts.gate_up_proj", 2 * count * inner),)),
        down=(down, (Part(f"{fused}.experts.down_proj", count * hidden),)),
    )
