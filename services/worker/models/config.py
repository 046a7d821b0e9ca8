"""config.json of a model directory, in the spellings of transformers 4 and 5."""

from pathlib import Path
from typing import Any

import msgspec

from common.errors import StartupError

CONFIG_FILE = "config.json"


class RopeParameters(msgspec.Struct, frozen=True):
    """`rope_parameters`, or `rope_theta` and `rope_scaling` together; None = not given."""

    rope_type: str = "default"
    rope_theta: float = 10_000.0
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    partial_rotary_factor: float = 1.0


class ModelConfig(msgspec.Struct, frozen=True):
    """The fields that families read, as Llama's config calls them; the rest is left alone."""

    architectures: tuple[str, ...]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    dtype: str | None = None
    rope: RopeParameters = RopeParameters()
    # qwen2
    use_sliding_window: bool = False
    max_window_layers: int = 28
    layer_types: tuple[str, ...] | None = None
    # mixtral
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    # falcon
    alibi: bool = False
    bias: bool = False
    layer_norm_epsilon: float = 1e-5
    multi_query: bool = True
    new_decoder_architecture: bool = False
    parallel_attn: bool = True
    # opt
    do_layer_norm_before: bool = True
    enable_bias: bool = True
    layer_norm_elementwise_affine: bool = True
    remove_final_layer_norm: bool = False
    word_embed_proj_dim: int | None = None

    @property
    def num_kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Dimensions of one attention head."""
        return self.head_dim or self.hidden_size // max(self.num_attention_heads, 1)

    def require(self, **values: object) -> None:
        """Refuse a model that a family does not compute.

        Raises:
            StartupError: a field has another value than the given one.
        """
        for name, needed in values.items():
            value = getattr(self, name)
            if value != needed:
                raise StartupError(
                    f"{name} {value} is not supported for {', '.join(self.architectures)}; "
                    f"only {needed} is"
                )


def read_config(model_dir: Path) -> ModelConfig:
    """Read and check a model's config.json.

    Raises:
        StartupError: the file is missing, is not JSON, lacks a field or has one of a wrong type, or
            asks for something that no family computes (quantised weights).
    """
    path = model_dir / CONFIG_FILE
    try:
        raw = _spell_like_llama(msgspec.json.decode(path.read_bytes(), type=dict[str, Any]))
        raw["rope"] = _rope_parameters(raw)
        raw["dtype"] = raw.get("dtype") or raw.get("torch_dtype")
        config = msgspec.convert(raw, ModelConfig)
    except OSError as error:
        raise StartupError(f"cannot read {path}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise StartupError(f"{path} cannot be used: {error}") from None
    _check(config, raw, path)
    return config


_RENAMED = {
    "falcon": {"ffn_hidden_size": "intermediate_size", "activation": "hidden_act"},
    "opt": {
        "ffn_dim": "intermediate_size",
        "activation_function": "hidden_act",
        "_remove_final_layer_norm": "remove_final_layer_norm",
    },
}


def _spell_like_llama(raw: dict[str, Any]) -> dict[str, Any]:
    """One name for each field, no nulls, and the defaults of the model's type."""
    names = _RENAMED.get(str(raw.get("model_type")), {})
    given = {names.get(name, name): value for name, value in raw.items() if value is not None}
    return _defaults(given) | given


def _defaults(raw: dict[str, Any]) -> dict[str, Any]:
    """What transformers takes for fields left out, where that is not what Llama has."""
    match raw:
        case {"model_type": "falcon", "hidden_size": int(hidden)}:
            return {
                "intermediate_size": 4 * hidden,
                "hidden_act": "gelu",
                "max_position_embeddings": 2048,
                "tie_word_embeddings": True,
            }
        case {"model_type": "opt", "hidden_size": hidden}:
            return {
                "hidden_act": "relu",
                "tie_word_embeddings": True,
                "word_embed_proj_dim": hidden,
            }
        case {"model_type": "mixtral"}:
            return {"rms_norm_eps": 1e-5, "rope_theta": 1e6}
        case _:
            return {}


def _rope_parameters(raw: dict[str, Any]) -> dict[str, Any]:
    """Both spellings as one; the older calls the type `type` and keeps theta outside."""
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise msgspec.ValidationError("rope parameters are not an object")
    merged = {
        "rope_type": scaling.get("type", "default"),
        "rope_theta": raw.get("rope_theta"),
        "partial_rotary_factor": raw.get("partial_rotary_factor"),
        **scaling,
    }
    return {name: value for name, value in merged.items() if value is not None}


def _check(config: ModelConfig, raw: dict[str, Any], path: Path) -> None:
    sizes = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.max_position_embeddings,
    }
    for name, size in sizes.items():
        if size < 1:
            raise StartupError(f"{path}: {name} is {size}, it must be at least 1")
    if config.num_attention_heads % config.num_kv_heads:
        raise StartupError(
            f"{path}: {config.num_attention_heads} attention heads do not divide among "
            f"{config.num_kv_heads} key-value heads"
        )
    if raw.get("quantization_config"):
        raise StartupError(f"{path}: quantised weights (quantization_config) are not supported")
