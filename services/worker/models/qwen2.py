"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, and windows on the upper layers if at all."""

from common.errors import StartupError
from services.worker.models.activation import make_activation
from services.worker.models.builder import ModelBuilder
from services.worker.models.config import ModelConfig
from services.worker.models.llama import add_attention, add_mlp, rope_tables
from services.worker.models.model import Model
from services.worker.models.rope import make_rope

LAYER_TYPES = ("full_attention", "sliding_attention")


def qwen2(config: ModelConfig) -> Model:
    """Declare the model that `config` describes.

    Raises:
        StartupError: the activation, the rope type or a layer type is not supported, or layer types
            are not as many as layers.
    """
    rope, activation = make_rope(config), make_activation(config)
    model = ModelBuilder(config)
    model.embed("model.embed_tokens")
    for layer, window in enumerate(_windows(config)):
        add_attention(model, config, layer, rope, window, qkv_bias=True)
        add_mlp(model, config, layer, activation)
    model.head("rms", "model.norm", config.rms_norm_eps)
    return model.build(rope_tables(config))


def _windows(config: ModelConfig) -> list[int | None]:
    """Tokens that each layer sees, None for all; configs without types begin windows at a layer."""
    window = config.sliding_window if config.use_sliding_window else None
    types = config.layer_types or tuple(
        LAYER_TYPES[layer >= config.max_window_layers] for layer in range(config.num_hidden_layers)
    )
    if len(types) != config.num_hidden_layers:
        raise StartupError(f"layer_types has {len(types)} for {config.num_hidden_layers} layers")
    if unknown := sorted(set(types) - set(LAYER_TYPES)):
        raise StartupError(
            f"layer_types {', '.join(unknown)} are not supported; "
            f"supported are {', '.join(LAYER_TYPES)}"
        )
    return [window if kind == "sliding_attention" else None for kind in types]
