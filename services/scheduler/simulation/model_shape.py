"""A model as far as the time of its passes depends on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from common.errors import ConfigError

CONFIG_FILE = "config.json"

# Families whose MLP is up, activation, down; all others have a gate beside the up projection.
_UNGATED = frozenset({"falcon", "gpt2", "gpt_neox", "opt", "phi"})
_RENAMED = {"ffn_dim": "intermediate_size", "ffn_hidden_size": "intermediate_size"}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder-only transformer. Biases, norms and positions are left out: under 0.1 %."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    vocab_size: int
    num_experts: int = 1
    experts_per_token: int = 1
    gated: bool = True  #: the MLP has three matrices, not two
    tied: bool = False  #: embedding and logits share their weights
    weight_bytes: float = 2.0  #: per parameter
    kv_bytes: float = 2.0  #: per number in the KV cache
    max_model_len: int = 4096  #: tokens

    @property
    def attention_params(self) -> int:
        """Weights of Q, K, V and output projections of all layers."""
        width = (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_size
        return self.num_layers * self.hidden_size * width

    @property
    def expert_params(self) -> int:
        """Weights of one expert (the whole MLP of a dense model) in all layers."""
        num_matrices = 3 if self.gated else 2
        return self.num_layers * num_matrices * self.hidden_size * self.intermediate_size

    @property
    def logits_params(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def num_params(self) -> int:
        """All weights."""
        embeddings = self.logits_params * (1 if self.tied else 2)
        return self.attention_params + self.num_experts * self.expert_params + embeddings

    @property
    def kv_bytes_per_token(self) -> float:
        """KV cache of one token, K and V, all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * self.kv_bytes


def read_model_shape(model_dir: Path) -> ModelShape:
    """Read a model directory's config.json.

    Raises:
        ConfigError: the file cannot be read, or says nothing about a decoder-only transformer.
    """
    path = model_dir / CONFIG_FILE
    try:
        raw = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        return parse_model_shape(raw)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.MsgspecError, ConfigError) as error:
        raise ConfigError(f"{path} cannot be used: {error}") from None


class _Config(msgspec.Struct):
    """What is read of config.json, as Llama spells it."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    vocab_size: int
    intermediate_size: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    num_local_experts: int = 1
    num_experts_per_tok: int = 1
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 4096
    model_type: str = "llama"
    # falcon
    multi_query: bool = False
    new_decoder_architecture: bool = False
    num_kv_heads: int | None = None


def parse_model_shape(raw: Mapping[str, Any]) -> ModelShape:
    """The shape that a config.json describes, weights and KV in 16 bits.

    Raises:
        ConfigError: a number is missing, of a wrong type or not positive; names it.
    """
    try:
        renamed = {_RENAMED.get(key, key): value for key, value in raw.items() if value is not None}
        config = msgspec.convert(renamed, _Config)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None
    heads = config.num_attention_heads
    shape = ModelShape(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=heads,
        num_kv_heads=_num_kv_heads(config),
        head_size=config.head_dim or config.hidden_size // max(heads, 1),
        intermediate_size=config.intermediate_size or 4 * config.hidden_size,
        vocab_size=config.vocab_size,
        num_experts=config.num_local_experts,
        experts_per_token=config.num_experts_per_tok,
        gated=config.model_type not in _UNGATED,
        tied=config.tie_word_embeddings,
        max_model_len=config.max_position_embeddings,
    )
    if min(shape.num_layers, shape.hidden_size, shape.num_kv_heads, shape.head_size) < 1:
        raise ConfigError(f"a model cannot have this shape: {shape}")
    return shape


def _num_kv_heads(config: _Config) -> int:
    if config.model_type == "falcon":
        if config.new_decoder_architecture:
            return config.num_kv_heads or config.num_attention_heads
        return 1 if config.multi_query else config.num_attention_heads
    return config.num_key_value_heads or config.num_attention_heads
