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
    """The fields that families read; everything else in the file is left alone."""

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

    @property
    def num_kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Dimensions of one attention head."""
        return self.head_dim or self.hidden_size // max(self.num_attention_heads, 1)


def read_config(model_dir: Path) -> ModelConfig:
    """Read and check a model's config.json.

    Raises:
        StartupError: the file is missing, is not JSON, lacks a field or has one of a wrong type, or
            asks for something that no family computes (quantised weights).
    """
    path = model_dir / CONFIG_FILE
    try:
        raw = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        raw["rope"] = _rope_parameters(raw)
        raw["dtype"] = raw.get("dtype") or raw.get("torch_dtype")
        config = msgspec.convert(raw, ModelConfig)
    except OSError as error:
        raise StartupError(f"cannot read {path}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise StartupError(f"{path} cannot be used: {error}") from None
    _check(config, raw, path)
    return config


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
