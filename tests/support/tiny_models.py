"""Tiny random Llamas, made by transformers: its own forward pass is the oracle for ours."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

VOCAB_SIZE = 211


def make_tiny_llama(directory: Path, *, seed: int = 0, **config: Any) -> PreTrainedModel:
    """Save a random Llama of float32 in `directory`, and return it in eval mode.

    With a `sliding_window` it is a Mistral.

    Sizes are odd on purpose. Weights are large, so that a wrong token, position or mask changes
    the logits a lot, and the best token is clearly the best.

    Args:
        config: fields of `transformers.LlamaConfig` that differ from the tiny default.
    """
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 60,
        "intermediate_size": 84,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    settings |= config
    model: PreTrainedModel
    if "sliding_window" in settings:
        model = MistralForCausalLM(MistralConfig(**settings))
    else:
        model = LlamaForCausalLM(LlamaConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # transformers starts biases at zero
                parameter.normal_(0, 0.2)
            elif "norm" in name:
                parameter.normal_(1, 0.2)
    model.save_pretrained(directory)
    loaded: PreTrainedModel = type(model).from_pretrained(directory, dtype=torch.float32)
    return loaded.eval()
