"""Tiny random models, made by transformers: its own forward pass is the oracle for ours."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCAB_SIZE = 211

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 60,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# Weights are large, so that a wrong token, position or mask changes the logits a lot.
_LLAMA = {"intermediate_size": 84, "num_key_value_heads": 2, "initializer_range": 0.2}
_FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, _LLAMA),
    "mistral": (MistralConfig, MistralForCausalLM, _LLAMA),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, _LLAMA),
    "mixtral": (MixtralConfig, MixtralForCausalLM, {**_LLAMA, "num_local_experts": 5}),
    "falcon": (
        FalconConfig,
        FalconForCausalLM,
        {"hidden_size": 70, "num_attention_heads": 7, "initializer_range": 0.2},
    ),
    "opt": (OPTConfig, OPTForCausalLM, {"ffn_dim": 84, "init_std": 0.2}),
}


def make_tiny(
    family: str, directory: Path, *, seed: int = 0, fused_experts: bool = False, **config: Any
) -> PreTrainedModel:
    """Save a random float32 model of a family in `directory`, and return it in eval mode.

    Sizes are odd on purpose; no bias is zero and no norm does nothing.

    Args:
        fused_experts: write experts as transformers 5 holds them, not as checkpoints spell them.
        config: fields of the family's transformers config that differ from the tiny default.
    """
    make_config, make_model, defaults = _FAMILIES[family]
    torch.manual_seed(seed)
    model: PreTrainedModel = make_model(make_config(**{**_COMMON, **defaults, **config}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # transformers starts biases at zero
                parameter.normal_(0, 0.2)
            elif "norm" in name or "ln_f" in name:
                parameter.normal_(1, 0.2)
    model.save_pretrained(directory, save_original_format=not fused_experts)
    loaded: PreTrainedModel = make_model.from_pretrained(directory, dtype=torch.float32)
    return loaded.eval()


def write_tiny_config(family: str, directory: Path, **config: Any) -> None:
    """Only config.json of such a model, also with fields that transformers would refuse."""
    make_config, make_model, defaults = _FAMILIES[family]
    make_config(**{**_COMMON, **defaults}).save_pretrained(directory)
    path = directory / "config.json"
    fields = {**json.loads(path.read_text()), "architectures": [make_model.__name__], **config}
    path.write_text(json.dumps(fields))


def make_tiny_llama(directory: Path, *, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A Llama; with a `sliding_window` it is a Mistral. See `make_tiny`."""
    family = "mistral" if "sliding_window" in config else "llama"
    return make_tiny(family, directory, seed=seed, **config)
