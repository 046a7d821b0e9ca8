"""A two-layer Llama as a GGUF file, and the weights that went into it."""

from pathlib import Path

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

NUM_HEADS = 4
NUM_KV_HEADS = 2
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LEFT_OUT = "ŀ"  # the symbol of byte 0x9e, as real vocabularies lack some
MERGES = ["Ġ t", "h e", "Ġt he", "1 2"]
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def vocabulary() -> list[str]:
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {LEFT_OUT})
    return [*SPECIALS, *alphabet, *(merge.replace(" ", "") for merge in MERGES)]


def make_model() -> LlamaForCausalLM:
    """Random weights that bf16 holds exactly; heads of 10 rows, so no two halves coincide."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=40,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_KV_HEADS,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_theta=5000.0,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(torch.bfloat16))
    return model


def write_gguf(
    path: Path, model: LlamaForCausalLM, *, architecture: str = "llama", pre: str = "smollm"
) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(40)
    writer.add_block_count(2)
    writer.add_feed_forward_length(56)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_vocab_size(len(vocabulary()))
    _add_tokenizer(writer, pre)
    for name, weight in model.model.state_dict().items():
        writer.add_tensor(_gguf_name(name), _llama_cpp_order(name, weight.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, pre: str) -> None:
    tokens = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIALS else 1 for token in tokens])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)


def _gguf_name(name: str) -> str:
    names = {
        "embed_tokens": "token_embd",
        "norm": "output_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    stem = name.removesuffix(".weight")
    if not stem.startswith("layers."):
        return f"{names[stem]}.weight"
    _, layer, part = stem.split(".", 2)
    return f"blk.{layer}.{names[part]}.weight"


def _llama_cpp_order(name: str, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Row i and row i + half of a head become neighbours, as llama.cpp's rope wants them."""
    num_heads = {"q_proj": NUM_HEADS, "k_proj": NUM_KV_HEADS}.get(name.split(".")[-2])
    if num_heads is None:
        return weight
    head_dim = weight.shape[0] // num_heads
    order = [
        head * head_dim + half * (head_dim // 2) + i
        for head in range(num_heads)
        for i in range(head_dim // 2)
        for half in (0, 1)
    ]
    return np.ascontiguousarray(weight[order])
