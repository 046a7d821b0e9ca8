"""Models of which only the shape counts: their weights are random."""

import numpy as np

from kernels.host_array import Dtype, HostArray
from kernels.program import Program
from services.worker.models.config import ModelConfig

SHAPES = {
    "smollm2-135m": ModelConfig(
        architectures=("LlamaForCausalLM",),
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "llama-1b": ModelConfig(
        architectures=("LlamaForCausalLM",),
        vocab_size=49152,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
}


def random_weights(program: Program, dtype: Dtype) -> dict[str, HostArray]:
    """Of a size that keeps activations near 1."""
    rng = np.random.default_rng(0)
    return {
        name: (
            rng.standard_normal(shape, np.float32) * (shape[-1] ** -0.5 if len(shape) > 1 else 1)
        ).astype(dtype)
        for name, shape in program.weights.items()
    }
