"""Falcon 7B: attention and MLP side by side behind one layer norm, one KV head for all heads.

The checkpoint's fused projection has the rows of q, then k, then v, as ours.
"""

from services.worker.models.activation import make_activation
from services.worker.models.builder import ModelBuilder
from services.worker.models.config import ModelConfig
from services.worker.models.model import Model
from services.worker.models.rope import make_rope


def falcon(config: ModelConfig) -> Model:
    """Declare the model that `config` describes.

    Raises:
        StartupError: the activation or the rope type is not supported, or it is a Falcon with
            ALiBi, with more KV heads, or with MLPs behind attention.
    """
    config.require(
        alibi=False, new_decoder_architecture=False, multi_query=True, parallel_attn=True
    )
    rope, activation = make_rope(config), make_activation(config)
    hidden, inner, bias = config.hidden_size, config.intermediate_size, config.bias
    qkv_width = (config.num_attention_heads + 2) * config.head_size
    model = ModelBuilder(config)
    model.embed("transformer.word_embeddings")
    for layer in range(config.num_hidden_layers):
        at, source = f"layers.{layer}", f"transformer.h.{layer}"
        attn, mlp = f"{source}.self_attention", f"{source}.mlp"
        qkv, o = {f"{attn}.query_key_value": qkv_width}, {f"{attn}.dense": hidden}
        up, down = {f"{mlp}.dense_h_to_4h": inner}, {f"{mlp}.dense_4h_to_h": hidden}
        model.norm("layer", f"{at}.norm", f"{source}.input_layernorm", config.layer_norm_epsilon)
        model.linear("normed", "qkv", f"{at}.qkv", qkv, bias=bias)
        model.attention(layer, rope, num_kv_heads=1)
        model.linear("attended", "hidden", f"{at}.o", o, bias=bias, residual="hidden")
        model.linear("normed", "up", f"{at}.up", up, bias=bias, activation=activation)
        model.linear("up", "hidden", f"{at}.down", down, bias=bias, residual="hidden")
    model.head("layer", "transformer.ln_f", config.layer_norm_epsilon)
    return model.build()
