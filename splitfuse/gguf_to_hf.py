"""Turn a GGUF file of a Llama-architecture model into a directory in Hugging Face layout.

    python -P -m splitfuse.gguf_to_hf SOURCE.gguf DIRECTORY

Writes config.json, generation_config.json, tokenizer.json, tokenizer_config.json (with the chat
template) and model.safetensors (bf16). Quantized weights are dequantized, so the result computes
what the GGUF computes. Runs as a process of its own: it needs torch and about 1 GiB for a while.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from splitfuse.app_tree import use_app_tree

use_app_tree()

from common.errors import ConfigError, SplitfuseError  # noqa: E402

Array = NDArray[np.float32]

CONTROL_TOKEN = 3  # tokenizer.ggml.token_type of tokens that are no text

_TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_TENSOR_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _split_digits() -> pre_tokenizers.PreTokenizer:
    """What `smollm` stands for: each digit is a token of its own, then GPT-2's byte level."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


# A GGUF names its pre-tokenizer; the rules behind the name live in the reader.
_PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "smollm": _split_digits,
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
}


def convert(source: Path, directory: Path) -> None:
    """Write `directory`, which exists and is empty, from the GGUF file `source`.

    Raises:
        ConfigError: the file holds a model that this converter does not know.
        OSError: a file cannot be read or written.
    """
    with Console(stderr=True).status(f"Reading {source.name}"):
        reader = gguf.GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise ConfigError(f"{source.name}: architecture {fields['general.architecture']!r}")
    names = {tensor.name for tensor in reader.tensors}
    tied = "output.weight" not in names

    _write_json(directory / "config.json", model_config(fields, tied=tied))
    _write_json(directory / "generation_config.json", _special_ids(fields))
    _write_json(directory / "tokenizer_config.json", tokenizer_config(fields))
    tokenizer(fields).save(str(directory / "tokenizer.json"))
    weights_file = directory / "model.safetensors"
    save_file(dict(_weights(reader, fields)), weights_file, metadata={"format": "pt"})
    weights_file.chmod(0o644)  # like its neighbours, whatever the writer's habit


def model_config(fields: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    """config.json. Rope's base stands in it twice, for readers older and newer than 2026."""
    num_heads = fields["llama.attention.head_count"]
    theta = float(fields["llama.rope.freq_base"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": num_heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.embedding_length"] // num_heads,
        "max_position_embeddings": fields["llama.context_length"],
        # float32 in the file: its shortest spelling is the number that was meant
        "rms_norm_eps": float(str(np.float32(fields["llama.attention.layer_norm_rms_epsilon"]))),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
        **_special_ids(fields),
    }


def tokenizer(fields: Mapping[str, Any]) -> Tokenizer:
    """The byte-level BPE tokenizer.

    A byte whose symbol is not in the vocabulary is dropped, as the original tokenizer does.
    """
    kind, pre = fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]
    if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise ConfigError(f"tokenizer {kind!r} with pre-tokenizer {pre!r} is not known")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    bpe = models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    result = Tokenizer(bpe)
    result.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    result.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    result.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return result


def tokenizer_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json: special tokens by name, and the chat template."""
    tokens = fields["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it stands
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "add_bos_token": fields.get("tokenizer.ggml.add_bos_token", False),
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
        "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
        "chat_template": fields["tokenizer.chat_template"],
    }


def interleaved_to_half(weight: Array, num_heads: int) -> Array:
    """Rows of a Q or K projection from llama.cpp's rope order to Hugging Face's.

    llama.cpp rotates neighbouring rows (2i, 2i + 1) of a head, Hugging Face rows (i, i + head_dim
    / 2). `weight` is [num_heads * head_dim, hidden_size]; so is the result.
    """
    pairs = weight.reshape(num_heads, -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _weights(
    reader: gguf.GGUFReader, fields: Mapping[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    console = Console(stderr=True)
    for tensor in track(reader.tensors, "Converting weights", console=console, transient=True):
        name, kind = _hf_name(tensor.name)
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        if kind in heads:
            weight = interleaved_to_half(weight, heads[kind])
        yield name, torch.from_numpy(np.array(weight)).to(torch.bfloat16)


def _hf_name(name: str) -> tuple[str, str]:
    """Hugging Face's name of a tensor, and the kind of the tensor in GGUF's words."""
    stem, _, suffix = name.rpartition(".")
    if stem in _TENSOR_NAMES:
        return f"{_TENSOR_NAMES[stem]}.{suffix}", stem
    block, _, kind = stem.removeprefix("blk.").partition(".")
    if kind not in _LAYER_TENSOR_NAMES:
        raise ConfigError(f"tensor {name!r} is not known")
    return f"model.layers.{block}.{_LAYER_TENSOR_NAMES[kind]}.{suffix}", kind


def _special_ids(fields: Mapping[str, Any]) -> dict[str, int]:
    return {
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except (SplitfuseError, OSError, KeyError) as error:
        sys.exit(f"cannot convert {sys.argv[1]}: {error!r}")
