"""OPT: learned positions, layer norms, biases, and an MLP with one activation.

Checkpoints name their tensors with or without the prefix `model.`.
"""

from dataclasses import replace

from services.worker.models.activation import make_activation
from services.worker.models.builder import ModelBuilder
from services.worker.models.config import ModelConfig
from services.worker.models.model import Model, Part

EPS = 1e-5  # not in the config: torch's default for a layer norm
POSITION_OFFSET = 2  # rows of the table before that of position 0


def opt(config: ModelConfig) -> Model:
    """Declare the model that `config` describes.

    Raises:
        StartupError: the activation is not supported, norms stand behind attention and MLP (350m),
            have no weights or are missing at the end, or embeddings have another width.
    """
    config.require(
        do_layer_norm_before=True,
        layer_norm_elementwise_affine=True,
        remove_final_layer_norm=False,
        word_embed_proj_dim=config.hidden_size,
    )
    activation, bias = make_activation(config), config.enable_bias
    hidden, inner = config.hidden_size, config.intermediate_size
    model = ModelBuilder(config)
    model.embed("model.decoder.embed_tokens")
    model.embed_positions("model.decoder.embed_positions", POSITION_OFFSET)
    for layer in range(config.num_hidden_layers):
        at, source = f"layers.{layer}", f"model.decoder.layers.{layer}"
        attn = f"{source}.self_attn"
        qkv = {f"{attn}.{name}_proj": hidden for name in "qkv"}
        o = {f"{attn}.out_proj": hidden}
        up, down = {f"{source}.fc1": inner}, {f"{source}.fc2": hidden}
        model.norm("layer", f"{at}.attn_norm", f"{source}.self_attn_layer_norm", EPS)
        model.linear("normed", "qkv", f"{at}.qkv", qkv, bias=bias)
        model.attention(layer, None, config.num_attention_heads)
        model.linear("attended", "hidden", f"{at}.o", o, bias=bias, residual="hidden")
        model.norm("layer", f"{at}.mlp_norm", f"{source}.final_layer_norm", EPS)
        model.linear("normed", "up", f"{at}.up", up, bias=bias, activation=activation)
        model.linear("up", "hidden", f"{at}.down", down, bias=bias, residual="hidden")
    model.head("layer", "model.decoder.final_layer_norm", EPS)
    declared = model.build()
    return replace(declared, alternatives=_without_prefix(declared))


def _without_prefix(model: Model) -> dict[str, tuple[Part, ...]]:
    return {
        name: tuple(Part(part.tensor.removeprefix("model."), part.num_rows) for part in parts)
        for name, parts in model.sources.items()
    }
