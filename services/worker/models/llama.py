"""The Llama family: Llama 1 to 3.x, SmolLM2, and whatever else says LlamaForCausalLM.

Pre-norm decoder: RMS norm, rotary embeddings, grouped-query attention, gated MLP. Projections of
one input are fused into one matrix (q, k, v; gate, up), whose rows are the checkpoint's.
"""

from typing import TypeAlias

from common.errors import StartupError
from kernels.program import (
    Activation,
    Buffer,
    Embed,
    GatedActivation,
    GatherRows,
    Linear,
    Logits,
    Norm,
    Op,
    PagedAttention,
    Program,
    Rope,
    RopeStoreKv,
)
from services.worker.models.config import ModelConfig
from services.worker.models.model import Model, Part
from services.worker.models.rope import make_rope

ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def llama(config: ModelConfig) -> Model:
    """Declare the model that `config` describes.

    Raises:
        StartupError: the activation or the rope type is not supported.
    """
    if config.hidden_act not in ACTIVATIONS:
        raise StartupError(
            f"hidden_act {config.hidden_act!r} is not supported; "
            f"supported are {', '.join(ACTIVATIONS)}"
        )
    rope = make_rope(config)
    output = "embed" if config.tie_word_embeddings else "lm_head"
    ops: list[Op] = [Embed("embed", out="hidden")]
    for layer in range(config.num_hidden_layers):
        ops += _attention(config, layer, rope)
        ops += _mlp(config, layer)
    ops += [
        GatherRows("hidden", out="last"),
        Norm("rms", "last", out="last", weight="norm", eps=config.rms_norm_eps),
        Logits("last", weight=output),
    ]
    weights = _weights(config)
    program = Program(tuple(ops), _buffers(config), {name: w[0] for name, w in weights.items()})
    program.validate()
    return Model(program, {name: w[1] for name, w in weights.items()}, _ignored(config))


def _attention(config: ModelConfig, layer: int, rope: Rope) -> list[Op]:
    heads, kv_heads, size = config.num_attention_heads, config.num_kv_heads, config.head_size
    at, bias = f"layers.{layer}", config.attention_bias
    return [
        Norm("rms", "hidden", out="normed", weight=f"{at}.attn_norm", eps=config.rms_norm_eps),
        Linear("normed", out="qkv", weight=f"{at}.qkv", bias=f"{at}.qkv_bias" if bias else None),
        RopeStoreKv("qkv", layer, heads, kv_heads, size, rope),
        PagedAttention(
            "qkv",
            out="attended",
            layer=layer,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=size,
            scale=size**-0.5,
            sliding_window=config.sliding_window,
        ),
        Linear(
            "attended",
            out="hidden",
            weight=f"{at}.o",
            bias=f"{at}.o_bias" if bias else None,
            residual="hidden",
        ),
    ]


def _mlp(config: ModelConfig, layer: int) -> list[Op]:
    at, bias = f"layers.{layer}", config.mlp_bias
    return [
        Norm("rms", "hidden", out="normed", weight=f"{at}.mlp_norm", eps=config.rms_norm_eps),
        Linear(
            "normed",
            out="gate_up",
            weight=f"{at}.gate_up",
            bias=f"{at}.gate_up_bias" if bias else None,
        ),
        GatedActivation(ACTIVATIONS[config.hidden_act], "gate_up", out="gated"),
        Linear(
            "gated",
            out="hidden",
            weight=f"{at}.down",
            bias=f"{at}.down_bias" if bias else None,
            residual="hidden",
        ),
    ]


def _buffers(config: ModelConfig) -> dict[str, Buffer]:
    q_width = config.num_attention_heads * config.head_size
    return {
        "hidden": Buffer(config.hidden_size),
        "normed": Buffer(config.hidden_size),
        "qkv": Buffer(q_width + 2 * config.num_kv_heads * config.head_size),
        "attended": Buffer(q_width),
        "gate_up": Buffer(2 * config.intermediate_size),
        "gated": Buffer(config.intermediate_size),
        "last": Buffer(config.hidden_size, rows="logits"),
    }


Sources: TypeAlias = dict[str, tuple[tuple[int, ...], tuple[Part, ...]]]  # shape and parts


def _weights(config: ModelConfig) -> Sources:
    """Shape and checkpoint tensors of each weight."""
    hidden = config.hidden_size
    table = (config.vocab_size, hidden)
    weights: Sources = {"embed": (table, (Part("model.embed_tokens.weight", table[0]),))}
    for layer in range(config.num_hidden_layers):
        weights |= _layer_weights(config, f"layers.{layer}", f"model.layers.{layer}")
    weights["norm"] = (hidden,), (Part("model.norm.weight", hidden),)
    if not config.tie_word_embeddings:
        weights["lm_head"] = table, (Part("lm_head.weight", table[0]),)
    return weights


def _layer_weights(config: ModelConfig, at: str, source: str) -> Sources:
    hidden, inner = config.hidden_size, config.intermediate_size
    q_width = config.num_attention_heads * config.head_size
    kv_width = config.num_kv_heads * config.head_size
    attn, mlp = f"{source}.self_attn", f"{source}.mlp"
    qkv = [(f"{attn}.q_proj", q_width), (f"{attn}.k_proj", kv_width), (f"{attn}.v_proj", kv_width)]
    gate_up = [(f"{mlp}.gate_proj", inner), (f"{mlp}.up_proj", inner)]
    weights: Sources = {
        f"{at}.attn_norm": ((hidden,), (Part(f"{source}.input_layernorm.weight", hidden),)),
        f"{at}.mlp_norm": ((hidden,), (Part(f"{source}.post_attention_layernorm.weight", hidden),)),
    }
    for name, parts, in_width, bias in (
        ("qkv", qkv, hidden, config.attention_bias),
        ("o", [(f"{attn}.o_proj", hidden)], q_width, config.attention_bias),
        ("gate_up", gate_up, hidden, config.mlp_bias),
        ("down", [(f"{mlp}.down_proj", hidden)], inner, config.mlp_bias),
    ):
        rows = sum(num_rows for _, num_rows in parts)
        matrix = tuple(Part(f"{tensor}.weight", num_rows) for tensor, num_rows in parts)
        weights[f"{at}.{name}"] = (rows, in_width), matrix
        if bias:
            vector = tuple(Part(f"{tensor}.bias", num_rows) for tensor, num_rows in parts)
            weights[f"{at}.{name}_bias"] = (rows,), vector
    return weights


def _ignored(config: ModelConfig) -> frozenset[str]:
    """Rope tables of old checkpoints, and the copy of a tied table."""
    tables = {
        f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        for layer in range(config.num_hidden_layers)
    }
    return frozenset(tables | ({"lm_head.weight"} if config.tie_word_embeddings else set()))
