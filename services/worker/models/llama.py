"""The Llama family: Llama 1 to 3.x, SmolLM2, and whatever else says LlamaForCausalLM.

Pre-norm decoder: RMS norm, rotary embeddings, grouped-query attention, gated MLP. Projections of
one input are fused into one matrix (q, k, v; gate, up), whose rows are the checkpoint's.
"""

from kernels.program import Activation, Rope
from services.worker.models.activation import make_activation
from services.worker.models.builder import ModelBuilder
from services.worker.models.config import ModelConfig
from services.worker.models.model import Model
from services.worker.models.rope import make_rope


def llama(config: ModelConfig) -> Model:
    """Declare the model that `config` describes.

    Raises:
        StartupError: the activation or the rope type is not supported.
    """
    rope, activation, bias = make_rope(config), make_activation(config), config.attention_bias
    model = ModelBuilder(config)
    model.embed("model.embed_tokens")
    for layer in range(config.num_hidden_layers):
        add_attention(model, config, layer, rope, config.sliding_window, qkv_bias=bias, o_bias=bias)
        add_mlp(model, config, layer, activation)
    model.head("rms", "model.norm", config.rms_norm_eps)
    return model.build(rope_tables(config))


def add_attention(
    model: ModelBuilder,
    config: ModelConfig,
    layer: int,
    rope: Rope,
    window: int | None,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
) -> None:
    """Attention of a layer, also for families that differ from Llama elsewhere."""
    at, source = f"layers.{layer}", f"model.layers.{layer}"
    attn = f"{source}.self_attn"
    kv_width = config.num_kv_heads * config.head_size
    qkv = {
        f"{attn}.q_proj": config.num_attention_heads * config.head_size,
        f"{attn}.k_proj": kv_width,
        f"{attn}.v_proj": kv_width,
    }
    o = {f"{attn}.o_proj": config.hidden_size}
    model.norm("rms", f"{at}.attn_norm", f"{source}.input_layernorm", config.rms_norm_eps)
    model.linear("normed", "qkv", f"{at}.qkv", qkv, bias=qkv_bias)
    model.attention(layer, rope, config.num_kv_heads, window)
    model.linear("attended", "hidden", f"{at}.o", o, bias=o_bias, residual="hidden")


def add_mlp(model: ModelBuilder, config: ModelConfig, layer: int, activation: Activation) -> None:
    """The gated MLP of a layer."""
    at, source = f"layers.{layer}", f"model.layers.{layer}"
    inner, bias = config.intermediate_size, config.mlp_bias
    gate_up = {f"{source}.mlp.gate_proj": inner, f"{source}.mlp.up_proj": inner}
    down = {f"{source}.mlp.down_proj": config.hidden_size}
    add_mlp_norm(model, config, layer)
    model.linear("normed", "gate_up", f"{at}.gate_up", gate_up, bias=bias)
    model.gated_activation(activation, "gate_up", "gated")
    model.linear("gated", "hidden", f"{at}.down", down, bias=bias, residual="hidden")


def add_mlp_norm(model: ModelBuilder, config: ModelConfig, layer: int) -> None:
    """The norm before a layer's MLP, or its experts."""
    tensor = f"model.layers.{layer}.post_attention_layernorm"
    model.norm("rms", f"layers.{layer}.mlp_norm", tensor, config.rms_norm_eps)


def rope_tables(config: ModelConfig) -> frozenset[str]:
    """Tensors of old checkpoints that the config says as well."""
    return frozenset(
        f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        for layer in range(config.num_hidden_layers)
    )
